"""Prices and the names of GPUs."""

from pathlib import Path

import pytest

from corral.market import Prices, PricesMalformed

PRICES = Prices.load()


@pytest.mark.parametrize(
    ("found", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("nvidia geforce rtx 4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA H100 96GB", None),
        ("", None),
    ],
)
def test_vendors_name_stands_for_one_model_or_none(found: str, model: str | None) -> None:
    """No guess ever sets a price: what the file does not list has none."""
    assert PRICES.model_of(found) == model


@pytest.mark.parametrize(
    ("wish", "models"),
    [
        ("H100", ("H100 SXM", "H100 NVL", "H100 PCIe")),
        ("h100 sxm", ("H100 SXM",)),
        ("NVIDIA H100 80GB HBM3", ("H100 SXM",)),
        ("H200", ("H200",)),
        ("4090", ("RTX 4090",)),
        ("a100 80gb", ("A100 SXM 80GB", "A100 PCIe 80GB")),
        ("GH100", ()),
        ("!!", ()),
    ],
)
def test_renters_word_means_all_models_that_include_it(wish: str, models: tuple[str, ...]) -> None:
    """A family such as "H100" has several; a model's own name means that model alone."""
    assert PRICES.models_meant(wish) == models


def test_misspelt_model_has_near_ones() -> None:
    """A typing error is answered with what may have been meant."""
    assert "RTX 4090" in PRICES.models_near("RTX4090")
    assert PRICES.models_near("H10O")[0].startswith("H100")
    assert PRICES.models_near("zzzz") == ()


def test_slice_is_priced_by_its_cores_rounded_up() -> None:
    """A fraction of a core is never free."""
    prices = Prices.read({"cpu": {"core_hour": "0.000001"}, "gpu": {}}, where="x")
    assert prices.rate_uc_per_hour(kind="cpu", model="any", cores=0.25) == 1
    assert prices.rate_uc_per_hour(kind="cpu", model="any", cores=2.0) == 2
    assert prices.rate_uc_per_hour(kind="gpu", model="NVIDIA H200", cores=2.0) is None
    assert PRICES.rate_uc_per_hour(kind="gpu", model="NVIDIA H200", cores=2.0) == 3_290_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("nonsense", "not TOML"),
        ("[gpu]", "'cpu' is missing"),
        ('[cpu]\ncore_hour = "1"', "'gpu' is missing"),
        ("[cpu]\ncore_hour = 1.5\n[gpu]", "must be a text"),
        ('[cpu]\ncore_hour = "-1"\n[gpu]', "not an amount"),
        ('[cpu]\ncore_hour = "0"\n[gpu]', "more than 0"),
        ('[cpu]\ncore_hour = "1"\n[gpu]\n[disk]', r"unknown section \[disk\]"),
        (
            '[cpu]\ncore_hour = "1"\n[gpu.A]\nhour = "1"\nnames = ["X1"]\n[gpu.B]\nhour = "2"\nnames = ["X1"]',
            "two models",
        ),
    ],
)
def test_price_file_with_a_mistake_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    """A wrong price is worse than none: the message says where the mistake is."""
    path = tmp_path / "prices.toml"
    path.write_text(content)
    with pytest.raises(PricesMalformed, match=reason):
        Prices.load(path)
    with pytest.raises(PricesMalformed, match="cannot be read"):
        Prices.load(tmp_path / "missing.toml")
