"""
Prices from a file, and which GPU is meant by a name.

Vendors' libraries call a card "NVIDIA H100 80GB HBM3", people say "H100". The price file names each model once and
lists the vendors' names for it; everything else is compared by words, without case, so that no guess ever sets a price.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, cast

from corral.core.errors import CorralError
from corral.core.money import Uc, parse_credits
from corral.market.errors import PricesMalformed

_NOISE = frozenset({"nvidia", "amd", "geforce", "tesla", "instinct", "radeon", "generation"})
"""Words that vendors put around a model's name and that tell no two models apart."""

_WORD = re.compile(r"[a-z]+\d[a-z0-9]*|\d+[a-z]*|[a-z]+")


@dataclass(frozen=True)
class Prices:
    """What a device costs an hour. Models are the names of the price file."""

    core_hour_uc: Uc
    gpu_hour_uc: Mapping[str, Uc]
    vendor_names: Mapping[str, str]
    """From a vendor's name, as `_words` joined, to the model."""

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """
        Reads a price file; None means the one that comes with Corral.

        Raises:
            PricesMalformed: it cannot be read, or an entry is wrong.
        """
        where = str(path) if path is not None else "prices.toml"
        try:
            content = (
                path.read_text(encoding="utf-8")
                if path is not None
                else resources.files("corral.market").joinpath("prices.toml").read_text(encoding="utf-8")
            )
            return cls.read(tomllib.loads(content), where=where)
        except OSError as error:
            raise PricesMalformed(where, f"cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PricesMalformed(where, f"is not TOML ({error})") from error

    @classmethod
    def read(cls, content: Mapping[str, Any], *, where: str) -> Self:
        """
        Checks the content of a price file.

        Raises:
            PricesMalformed: an entry is missing, unknown, not positive, or a vendor's name stands twice.
        """
        for unknown in set(content) - {"cpu", "gpu"}:
            raise PricesMalformed(where, f"unknown section [{unknown}]")
        cpu = _section(content, "cpu", where)
        gpu = _section(content, "gpu", where)
        hours: dict[str, Uc] = {}
        vendor_names: dict[str, str] = {}
        for model in gpu:
            entry = _section(gpu, model, where)
            hours[model] = _price(entry, "hour", f"{where}, model {model!r}")
            names: Any = entry.get("names", [])
            if not isinstance(names, list):
                raise PricesMalformed(where, f"model {model!r}: `names` is not a list of texts")
            for name in [model, *cast("list[Any]", names)]:
                if not isinstance(name, str) or not _words(name):
                    raise PricesMalformed(where, f"model {model!r}: {name!r} is not a name")
                if vendor_names.setdefault(_joined(name), model) != model:
                    raise PricesMalformed(where, f"{name!r} stands for two models")
        return cls(_price(cpu, "core_hour", f"{where}, [cpu]"), hours, vendor_names)

    def model_of(self, found_name: str) -> str | None:
        """The model that a vendor's name stands for; None if the price file does not know it."""
        return self.vendor_names.get(_joined(found_name))

    def rate_uc_per_hour(self, *, kind: Literal["gpu", "cpu"], model: str, cores: float) -> Uc | None:
        """What a device costs an hour; a CPU slice by its cores, rounded up to a micro-credit. None: no price."""
        if kind == "gpu":
            priced = self.model_of(model)
            return self.gpu_hour_uc[priced] if priced is not None else None
        return Uc(-(-self.core_hour_uc * round(cores * 1000) // 1000))

    def models_meant(self, wish: str) -> tuple[str, ...]:
        """
        The models that a renter's word may mean: exactly one if it is a model's or a vendor's name, otherwise all whose
        words include those of the wish ("H100": SXM, NVL and PCIe); empty if there is none.
        """
        exact = self.model_of(wish)
        if exact is not None:
            return (exact,)
        words = set(_words(wish))
        return tuple(model for model in self.gpu_hour_uc if words and words <= set(_words(model)))

    def models_near(self, wish: str) -> tuple[str, ...]:
        """Up to three models whose names look like `wish`, for a misspelt one."""
        by_name = {_joined(model): model for model in self.gpu_hour_uc}
        by_name |= {word: model for model in self.gpu_hour_uc for word in _words(model) if len(word) > 2}
        near = difflib.get_close_matches(_joined(wish), list(by_name), n=6, cutoff=0.5)
        return tuple(dict.fromkeys(by_name[name] for name in near))[:3]


def same_words(one: str, other: str) -> bool:
    """Whether two names say the same, without case, punctuation and vendor."""
    return _joined(one) == _joined(other)


def _words(name: str) -> list[str]:
    return [word for word in _WORD.findall(name.lower()) if word not in _NOISE]


def _joined(name: str) -> str:
    return " ".join(_words(name))


def _section(content: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    section: Any = content.get(name)
    if not isinstance(section, dict):
        raise PricesMalformed(where, f"section {name!r} is missing")
    return cast("Mapping[str, Any]", section)


def _price(entry: Mapping[str, Any], name: str, where: str) -> Uc:
    value: Any = entry.get(name)
    if not isinstance(value, str):
        raise PricesMalformed(where, f'`{name}` must be a text such as "1.99"')
    try:
        price = parse_credits(value)
    except CorralError as error:
        raise PricesMalformed(where, error.message) from error
    if price <= 0:
        raise PricesMalformed(where, f"`{name}` must be more than 0")
    return price
