"""Laws of cutting a host into devices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.agent.capacity import CapacityRefused, check_beside, development_device, devices_of
from corral.core.units import GIB
from corral.wire.agent import Cpu, Gpu, Hardware


def a_gpu(index: int = 0, *, memory_gib: int = 80, mig: bool = False, vendor: str = "nvidia", render: str = "") -> Gpu:
    return Gpu(
        uuid=f"GPU-{index:04d}", vendor="amd" if vendor == "amd" else "nvidia", model="H100",
        memory_bytes=memory_gib * GIB, index=index, mig=mig, render_node=render,
    )  # fmt: skip


def a_host(cores: float = 16, memory: int = 64 * GIB, disk: int = 2048 * GIB, gpus: tuple[Gpu, ...] = ()) -> Hardware:
    return Hardware(
        cpu=Cpu(model="AMD EPYC", cores=cores), memory_bytes=memory, disk_free_bytes=disk, gpus=gpus,
        runtimes=("nvidia", "runc"),
    )  # fmt: skip


@st.composite
def hosts(draw: st.DrawFn) -> Hardware:
    count = draw(st.integers(0, 16))
    gpus = tuple(
        a_gpu(index, memory_gib=draw(st.sampled_from([0, 12, 24, 80, 192])), mig=draw(st.booleans()))
        for index in range(count)
    )
    return a_host(
        draw(st.floats(0.1, 512)), draw(st.integers(0, 4096 * GIB)), draw(st.integers(0, 100_000 * GIB)), gpus
    )


@given(hosts())
def test_devices_together_never_exceed_the_host(host):
    """What is sold is there: cores, memory and disk, whatever the host."""
    devices = devices_of(host)
    assert sum(device.cores for device in devices) <= host.cpu.cores + 1e-9
    assert sum(device.memory_bytes for device in devices) <= host.memory_bytes
    assert sum(device.disk_bytes for device in devices) <= host.disk_free_bytes
    assert all(device.cores >= 0 and device.memory_bytes >= 0 and device.disk_bytes >= 0 for device in devices)


@given(hosts())
def test_keys_are_unique_and_stable(host):
    """A device keeps its name over looks, so that a booking keeps its device."""
    keys = [device.key for device in devices_of(host)]
    assert len(set(keys)) == len(keys)
    assert keys == [device.key for device in devices_of(host)]


@given(hosts(), st.floats(0, 64), st.integers(0, 512 * GIB), st.integers(0, 4096 * GIB))
def test_more_resources_never_give_fewer_devices(host, cores, memory, disk):
    """Nobody loses a device by adding a core, memory or disk."""
    more = a_host(host.cpu.cores + cores, host.memory_bytes + memory, host.disk_free_bytes + disk, host.gpus)
    assert len(devices_of(more)) >= len(devices_of(host))


@given(hosts())
def test_another_gpu_never_gives_fewer_gpus(host):
    """A card may take cores from slices, never another card's place."""
    more = a_host(host.cpu.cores, host.memory_bytes, host.disk_free_bytes, (*host.gpus, a_gpu(99)))
    assert sum(d.kind == "gpu" for d in devices_of(more)) == sum(d.kind == "gpu" for d in devices_of(host)) + 1


def test_a_small_host_lends_both_its_cores():
    """Two cores are two slices: a reserve would cost half the host."""
    devices = devices_of(a_host(cores=2, memory=24 * GIB))
    assert [device.key for device in devices] == ["cpu-0", "cpu-1"]
    assert {device.cores for device in devices} == {1.0}


def test_memory_limits_the_number_of_slices():
    """Each slice gets at least 2 GiB."""
    assert len(devices_of(a_host(cores=64, memory=12 * GIB))) == 5


def test_a_gpu_host_gives_each_card_its_share_and_the_rest_as_slices():
    """8 H100, 192 cores, 2 TiB: 16 cores and twice its memory for each card, slices of what is left."""
    devices = devices_of(a_host(192, 2048 * GIB, 20_000 * GIB, tuple(a_gpu(n) for n in range(8))))
    gpus = [device for device in devices if device.kind == "gpu"]
    assert [(g.key, g.cores, g.memory_bytes // GIB) for g in gpus] == [(f"GPU-{n:04d}", 16.0, 160) for n in range(8)]
    assert len(devices) - len(gpus) == 44


def test_a_mining_rig_shares_its_few_cores():
    """8 cards on 4 cores: fractions for the cards, no slice."""
    devices = devices_of(a_host(4, 16 * GIB, 600 * GIB, tuple(a_gpu(n, memory_gib=12) for n in range(8))))
    assert len(devices) == 8
    assert {device.kind for device in devices} == {"gpu"}
    assert all(0 < device.cores < 1 for device in devices)


def test_cards_that_cannot_be_handed_over_are_not_lent():
    """MIG mode, an engine without NVIDIA's runtime, an AMD card without render node."""
    assert all(d.kind == "cpu" for d in devices_of(a_host(gpus=(a_gpu(mig=True), a_gpu(1, vendor="amd")))))
    bare = Hardware(
        cpu=Cpu(model="x", cores=8), memory_bytes=64 * GIB, disk_free_bytes=999 * GIB, gpus=(a_gpu(),),
        runtimes=("runc",),
    )  # fmt: skip
    assert all(d.kind == "cpu" for d in devices_of(bare))
    assert devices_of(a_host(gpus=(a_gpu(vendor="amd", render="renderD128"),)))[0].kind == "gpu"


def test_a_development_slice_is_exactly_what_was_asked_for():
    """Also a fraction of a core."""
    device = development_device(a_host(2, 24 * GIB), cores=0.4, memory_bytes=3 * GIB)
    assert (device.key, device.kind, device.cores, device.memory_bytes) == ("cpu-0", "cpu", 0.4, 3 * GIB)


@pytest.mark.parametrize(("cores", "memory"), [(3, GIB), (0, GIB), (-1, GIB), (1, 25 * GIB), (1, 0), (float("nan"), 1)])
def test_a_development_slice_beyond_the_machine_is_refused(cores, memory):
    """Nothing is lent that is not there."""
    with pytest.raises(CapacityRefused):
        development_device(a_host(2, 24 * GIB), cores=cores, memory_bytes=memory)


def test_slices_of_one_machine_never_exceed_it():
    """Two agents of 0.9 cores fit on two cores, a third of 0.3 does not; and the error says what would."""
    machine, others = a_host(2, 24 * GIB), [("corral-agent-a", 0.9, 8 * GIB), ("corral-agent-b", 0.9, 8 * GIB)]
    check_beside(others, cores=0.2, memory_bytes=8 * GIB, hardware=machine)
    with pytest.raises(CapacityRefused, match="corral-agent-a, corral-agent-b") as refused:
        check_beside(others, cores=0.3, memory_bytes=GIB, hardware=machine)
    assert "at most 0.2" in str(refused.value.hint)
    with pytest.raises(CapacityRefused, match="GiB does not fit"):
        check_beside(others, cores=0.1, memory_bytes=9 * GIB, hardware=machine)
