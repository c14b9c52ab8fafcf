"""Which devices fulfil a wish, and what an empty answer says."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.ids import DeviceId, HostId, PersonId
from corral.core.units import GIB
from corral.market import Prices, WishUnclear
from corral.market.offers import offers_of
from corral.market.placement import NoPlacement, Placement, place, place_replacement, priced
from corral.market.wish import Wish, read_wish
from corral.protocol.tiers import TierName
from corral.testing.clock import START
from corral.wire.api import ClusterRequest

PRICES = Prices.load()
SXM, PCIE, UNPRICED = "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA GeForce GTX 1080"


@dataclass(frozen=True)
class ADevice:
    """A rentable device of a test."""

    device_id: DeviceId
    host_id: HostId
    host_name: str
    provider_id: PersonId
    provider_name: str
    kind: Literal["gpu", "cpu"]
    model: str
    cores: float = 2.0
    memory_bytes: int = 8 * GIB
    disk_bytes: int = 100 * GIB
    gpu_memory_bytes: int = 0
    development: bool = False
    traffic_cap_bytes: int | None = None
    tier: TierName = ""


@dataclass(frozen=True)
class ARow:
    """A row of the census."""

    kind: Literal["gpu", "cpu"]
    model: str
    status: str
    count: int


def a_host(
    name: str, *, gpus: int = 0, cpus: int = 0, model: str = SXM, provider: str = "ada", cores: float = 2.0
) -> list[ADevice]:
    def device(kind: Literal["gpu", "cpu"], index: int) -> ADevice:
        device_id, model_ = DeviceId(f"{name}-{kind}-{index}"), model if kind == "gpu" else "EPYC"
        return ADevice(device_id, HostId(name), name, PersonId(provider), provider, kind, model_, cores)

    return [*(device("gpu", index) for index in range(gpus)), *(device("cpu", index) for index in range(cpus))]


def shares(wish: Wish, *hosts: list[ADevice], seed: str = "s") -> dict[str, int]:
    """GPUs (or, if none are wished, CPU slices) on each host."""
    found = place(wish, [device for host in hosts for device in host], PRICES, seed=seed)
    assert isinstance(found, Placement), found
    kind = "gpu" if wish.gpu_count else "cpu"
    return dict(Counter(line.host_id for line in found.lines if line.kind == kind))


def reasons(wish: Wish, *hosts: list[ADevice], census: list[ARow] | None = None) -> str:
    found = place(wish, [device for host in hosts for device in host], PRICES, seed="s", census=census or [])
    assert isinstance(found, NoPlacement), found
    return "; ".join(found.reasons)


def test_nodes_are_on_different_hosts() -> None:
    """One node is one host's share."""
    hosts = [a_host(name, cpus=4) for name in "abc"]
    assert shares(Wish(3, cpu=2), *hosts) == {"a": 2, "b": 2, "c": 2}
    assert "3 hosts have 2 CPU slices free, 4 are wished" in reasons(Wish(4, cpu=2), *hosts)


def test_gpus_without_a_number_of_nodes_use_as_few_hosts_as_they_need() -> None:
    """Eight on one host beat four and four; what remains goes where it just fits cheapest."""
    hosts = [a_host("a", gpus=4), a_host("b", gpus=8), a_host("c", gpus=2), a_host("d", gpus=4)]
    assert shares(Wish(None, gpu_model="H100", gpu_count=8), *hosts) == {"b": 8}
    assert len(shares(Wish(None, gpu_model="H100", gpu_count=12), *hosts)) == 2
    assert len(shares(Wish(None, gpu_model="H100", gpu_count=18), *hosts)) == 4


def test_gpus_on_a_number_of_nodes_are_spread_evenly() -> None:
    """Exactly so many hosts, as even as they allow."""
    hosts = [a_host("a", gpus=8), a_host("b", gpus=8), a_host("c", gpus=2)]
    assert sorted(shares(Wish(2, gpu_model="H100", gpu_count=8), *hosts).values()) == [4, 4]
    assert sorted(shares(Wish(3, gpu_model="H100", gpu_count=10), *hosts).values()) == [2, 4, 4]
    assert sorted(shares(Wish(2, gpu_model="H100", gpu_count=15), *hosts).values()) == [7, 8]
    assert "1 host has a GPU free, 2 are wished" in reasons(Wish(2, gpu_model="H100", gpu_count=2), a_host("a", gpus=8))


def test_cpu_slices_come_beside_gpus_on_every_node() -> None:
    """A host without enough slices is no node of such a cluster."""
    found = shares(
        Wish(1, cpu=2, gpu_model="H100", gpu_count=1), a_host("a", gpus=1, cpus=1), a_host("b", gpus=1, cpus=2)
    )
    assert found == {"b": 1}


def test_all_gpus_are_of_one_model_and_the_cheaper_one() -> None:
    """A family may mean several models; a cluster has one."""
    sxm, pcie = a_host("a", gpus=4), a_host("b", gpus=4, model=PCIE)
    assert shares(Wish(None, gpu_model="H100", gpu_count=4), sxm, pcie) == {"b": 4}
    assert "6 of one model are wished, at most 4 are free" in reasons(
        Wish(None, gpu_model="H100", gpu_count=6), sxm, pcie
    )


@pytest.mark.parametrize(
    ("had", "found", "replaces"),
    [(None, None, True), (5, None, True), (5, 5, True), (5, 9, True), (5, 4, False), (None, 9, False)],
)
def test_replacement_has_no_tighter_cap_on_the_internet(had: int | None, found: int | None, replaces: bool) -> None:
    """No cap is the loosest."""
    [lost] = priced([replace(one, traffic_cap_bytes=had) for one in a_host("lost", cpus=1)], PRICES)
    spare = [replace(one, traffic_cap_bytes=found) for one in a_host("spare", cpus=1)]
    assert (place_replacement([lost], spare, PRICES, excluded_hosts=[HostId("lost")]) is not None) is replaces


def test_single_provider_is_kept_even_if_dearer() -> None:
    """All nodes belong to one owner, or there is no placement."""
    cheap = [a_host("a", cpus=1, cores=1, provider="ada"), a_host("b", cpus=1, cores=1, provider="bob")]
    dear = [a_host("c", cpus=1, provider="eve"), a_host("d", cpus=1, provider="eve")]
    assert set(shares(Wish(2, cpu=1), *cheap, *dear)) == {"a", "b"}
    assert set(shares(Wish(2, cpu=1, single_provider=True), *cheap, *dear)) == {"c", "d"}
    assert "belongs to 2 providers" in reasons(Wish(2, cpu=1, single_provider=True), *cheap)


def test_head_is_where_most_memory_is() -> None:
    """All lines of the head's host are the head's, and come first."""
    devices = [*a_host("a", cpus=2), *(replace(one, memory_bytes=16 * GIB) for one in a_host("b", cpus=2))]
    found = place(Wish(2, cpu=2), devices, PRICES, seed="s")
    assert isinstance(found, Placement)
    assert [(line.host_id, line.is_head) for line in found.lines] == [
        ("b", True),
        ("b", True),
        ("a", False),
        ("a", False),
    ]


def test_empty_answer_says_which_wish_removed_how_many() -> None:
    """Existing, hired, unavailable, without a price, free: the numbers add up."""
    census = [
        ARow("gpu", SXM, "hired", 8),
        ARow("gpu", SXM, "cleaning", 1),
        ARow("gpu", SXM, "unavailable", 3),
        ARow("gpu", SXM, "idle", 2),
        ARow("cpu", "EPYC", "hired", 5),
    ]
    said = reasons(Wish(None, gpu_model="H100", gpu_count=4), a_host("a", gpus=2), census=census)
    assert said == (
        "14 H100 exist; 8 are hired; 1 is being cleaned after use; 3 are offline or paused; "
        "2 H100 are free on 1 host; 4 of one model are wished"
    )
    assert "3 have no price" in reasons(
        Wish(None, gpu_model="GTX 1080", gpu_count=1), a_host("a", gpus=3, model=UNPRICED)
    )
    assert reasons(Wish(3, cpu=1)) == "0 CPU slices exist; 0 hosts have 1 CPU slice free, 3 are wished"


def test_empty_answer_counts_one_as_one() -> None:
    """One thing is, several are."""
    census = [ARow("gpu", SXM, "hired", 1)]
    assert reasons(Wish(None, gpu_model="H100", gpu_count=1), census=census) == (
        "1 H100 exists; 1 is hired; 0 H100 are free; 1 of one model is wished"
    )
    assert reasons(Wish(2, cpu=1, single_provider=True), a_host("a", cpus=1)) == (
        "1 CPU slice exists; 1 host has 1 CPU slice free, 2 are wished; "
        "all of one provider is wished; what is free belongs to 1 provider"
    )
    assert "1 has no price and cannot be rented" in reasons(
        Wish(None, gpu_model="GTX 1080", gpu_count=1), a_host("a", gpus=1, model=UNPRICED)
    )


@pytest.mark.parametrize(
    ("request_", "wish"),
    [
        ({}, "cpu, gpu_count"),
        ({"nodes": 3}, "cpu, gpu_count"),
        ({"gpu_model": "H100"}, "gpu_count"),
        ({"gpu_count": 2}, "gpu_model"),
        ({"gpu_model": "H100", "gpu_count": 2, "nodes": 3}, "nodes"),
        ({"gpu_model": "H100", "gpu_count": 2, "cpu": 1}, "nodes"),
    ],
)
def test_wish_that_contradicts_itself_is_refused_by_name(request_: dict[str, object], wish: str) -> None:
    """The error names the wish that is wrong."""
    with pytest.raises(WishUnclear) as refused:
        read_wish(ClusterRequest.model_validate(request_))
    assert refused.value.wish == wish


def test_number_of_nodes_counts_only_if_it_was_said() -> None:
    """Sixteen GPUs on "one node by default" may need two hosts."""
    request = ClusterRequest(gpu_model="H100", gpu_count=16)
    assert read_wish(request).nodes is None
    assert read_wish(ClusterRequest(gpu_model="H100", gpu_count=16, nodes=1)).nodes == 1
    assert read_wish(ClusterRequest(cpu=1)).nodes == 1


def test_replacement_is_one_other_host_at_no_higher_rate() -> None:
    """Cheaper is welcome, dearer is none; the whole node moves to one host."""
    lost = place(Wish(1, cpu=2), a_host("a", cpus=2), PRICES, seed="s")
    assert isinstance(lost, Placement)
    dear, fit, half = a_host("b", cpus=2, cores=4), a_host("c", cpus=3), a_host("d", cpus=1)

    def replaced(*hosts: list[ADevice]) -> set[str] | None:
        found = place_replacement(lost.lines, [d for h in hosts for d in h], PRICES, excluded_hosts={HostId("a")})
        return None if found is None else {line.host_id for line in found}

    assert replaced(a_host("a", cpus=2), dear, half) is None
    assert replaced(a_host("a", cpus=2), dear, fit, half) == {"c"}


def test_offers_count_every_device_once_and_hide_none() -> None:
    """A device is offered or, with the reason, unavailable."""
    devices = [*a_host("a", gpus=4, cpus=2), *a_host("b", gpus=2), *a_host("c", gpus=3, model=UNPRICED)]
    found = offers_of(devices, PRICES, now=START)
    assert [(offer.kind, offer.model, offer.devices, offer.hosts, offer.per_host_max) for offer in found.offers] == [
        ("gpu", "H100 SXM", 6, 2, 4),
        ("cpu", "EPYC", 2, 1, 2),
    ]
    assert [(one.model, one.devices) for one in found.unavailable] == [(UNPRICED, 3)]


SIZES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4), st.sampled_from([SXM, PCIE]), st.sampled_from("xyz")))


@given(SIZES, st.none() | st.integers(1, 4), st.integers(0, 3), st.integers(0, 20), st.booleans(), st.text(max_size=3))
def test_any_placement_is_exactly_what_was_wished(
    sizes: list[tuple[int, int, str, str]], nodes: int | None, cpu: int, gpus: int, single: bool, seed: str
) -> None:
    """Right numbers, distinct devices, distinct hosts, one model, one head, and the same answer every time."""
    if gpus + cpu == 0 or (gpus and (nodes or 1) > gpus) or (nodes is None and (cpu or not gpus)):
        return
    devices = [
        device
        for number, (gpu, slices, model, provider) in enumerate(sizes)
        for device in a_host(f"h{number:02d}", gpus=gpu, cpus=slices, model=model, provider=provider)
    ]
    wish = Wish(nodes, cpu=cpu, gpu_model="H100" if gpus else None, gpu_count=gpus, single_provider=single)
    found = place(wish, devices, PRICES, seed=seed)
    assert place(wish, list(reversed(devices)), PRICES, seed=seed) == found
    if isinstance(found, NoPlacement):
        assert found.reasons
        return
    lines = found.lines
    assert len({line.device_id for line in lines}) == len(lines) == gpus + cpu * (nodes or 0)
    hosts = {line.host_id for line in lines}
    assert nodes is None or len(hosts) == nodes
    assert len({line.model for line in lines if line.kind == "gpu"}) <= 1
    assert len({line.host_id for line in lines if line.is_head}) == 1
    assert not single or len({line.provider_id for line in lines}) == 1
    if nodes is not None and gpus:
        assert all(any(line.kind == "gpu" for line in lines if line.host_id == host) for host in hosts)
