"""Readers of hardware, on answers as published for real machines; nothing here needs a card."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from corral.agent.hardware.amd import read_amd
from corral.agent.hardware.cpu import cpu_from, read_cpu
from corral.agent.hardware.engine import engine_facts
from corral.agent.hardware.memory import disk_free_bytes, memory_bytes
from corral.agent.hardware.nvidia import read_nvidia
from corral.core.units import GIB, MIB

FIXTURES = Path(__file__).parent / "fixtures"


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(f"NVML error {value}")


NOT_SUPPORTED, LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED, GPU_IS_LOST, UNKNOWN = 3, 12, 9, 15, 999


class Nvml:
    """Answers like `pynvml` from a fixture."""

    NVMLError = NVMLError
    NVML_ERROR_LIBRARY_NOT_FOUND = LIBRARY_NOT_FOUND
    NVML_ERROR_DRIVER_NOT_LOADED = DRIVER_NOT_LOADED

    def __init__(self, fixture: dict[str, Any], *, init_error: int | None = None, lost: tuple[int, ...] = ()) -> None:
        self._fixture, self._init_error, self._lost = fixture, init_error, lost
        self.is_open = False

    def nvmlInit(self) -> None:
        if self._init_error is not None:
            raise NVMLError(self._init_error)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._fixture["driver"]

    def nvmlDeviceGetCount(self) -> int:
        return len(self._fixture["cards"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if index in self._lost:
            raise NVMLError(GPU_IS_LOST)
        return self._fixture["cards"][index]

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> bytes:
        return handle["uuid"].encode()

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str:
        return handle["name"]

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        if handle["memory_bytes"] is None:
            raise NVMLError(NOT_SUPPORTED)
        return SimpleNamespace(total=handle["memory_bytes"])

    def nvmlDeviceGetPciInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(busId=handle["pci_bus_id"])

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> list[int]:
        if handle["mig_mode"] == "not supported":
            raise NVMLError(NOT_SUPPORTED)
        return handle["mig_mode"]


class AmdSmi:
    """Answers like `amdsmi` from a fixture."""

    def __init__(self, fixture: dict[str, Any], *, broken: tuple[str, ...] = ()) -> None:
        self._cards, self._broken = fixture["cards"], broken
        self.is_open = False

    def _may(self, call: str) -> None:
        if call in self._broken:
            raise RuntimeError(f"{call}: AMDSMI_STATUS_DRIVER_NOT_LOADED")

    def amdsmi_init(self) -> None:
        self._may("init")
        self.is_open = True

    def amdsmi_shut_down(self) -> None:
        self.is_open = False

    def amdsmi_get_processor_handles(self) -> list[Any]:
        self._may("handles")
        return self._cards

    def amdsmi_get_gpu_asic_info(self, handle: Any) -> Any:
        self._may("asic")
        return handle["asic"]

    def amdsmi_get_gpu_vram_info(self, handle: Any) -> Any:
        return handle["vram"]

    def amdsmi_get_gpu_device_bdf(self, handle: Any) -> str:
        return handle["bdf"]

    def amdsmi_get_gpu_device_uuid(self, handle: Any) -> str:
        return handle["uuid"]

    def amdsmi_get_gpu_driver_info(self, handle: Any) -> Any:
        self._may("driver")
        return handle["driver"]

    def amdsmi_get_gpu_enumeration_info(self, handle: Any) -> Any:
        if handle["enumeration"] == "not supported":
            raise RuntimeError("AMDSMI_STATUS_NOT_SUPPORTED")
        return handle["enumeration"]


def fixture(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def test_every_fixture_names_its_source():
    """What was published is told apart from what had to be filled in."""
    for path in FIXTURES.glob("*.json"):
        content = json.loads(path.read_text())
        assert "http" in content["source"] or "PyPI" in content["source"], path.name
        assert isinstance(content["not_published"], list), path.name


@pytest.mark.parametrize(
    ("name", "model", "memory_mib", "mig", "count"),
    [
        ("nvidia_h100", "NVIDIA H100 80GB HBM3", 81559, False, 1),
        ("nvidia_h100_mig", "NVIDIA H100 80GB HBM3", 81559, True, 1),
        ("nvidia_a100_mig", "NVIDIA A100-SXM4-80GB", 81920, True, 1),
        ("nvidia_rtx4090", "NVIDIA GeForce RTX 4090", 24564, False, 2),
    ],
)
def test_nvidia_cards_are_read(name, model, memory_mib, mig, count):
    """Model, memory, UUID, bus, driver and MIG mode, as the library tells them."""
    library = Nvml(fixture(name))
    gpus, notes = read_nvidia(library)
    assert notes == ()
    assert [gpu.index for gpu in gpus] == list(range(count))
    for gpu, card in zip(gpus, fixture(name)["cards"], strict=True):
        assert (gpu.vendor, gpu.model, gpu.memory_bytes, gpu.mig) == ("nvidia", model, memory_mib * MIB, mig)
        assert (gpu.uuid, gpu.pci_bus_id) == (card["uuid"], card["pci_bus_id"].lower())
        assert gpu.driver == fixture(name)["driver"]
    assert not library.is_open


@pytest.mark.parametrize("error", [LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED])
def test_a_machine_without_nvidia_has_no_cards_and_no_note(error):
    """The ordinary case of a CPU host."""
    assert read_nvidia(Nvml(fixture("nvidia_h100"), init_error=error)) == ((), ())


def test_a_broken_nvidia_driver_becomes_a_note():
    """The host goes on with what works."""
    gpus, notes = read_nvidia(Nvml(fixture("nvidia_h100"), init_error=UNKNOWN))
    assert gpus == ()
    assert "does not work" in notes[0]


def test_one_lost_nvidia_card_costs_only_itself():
    """A card that has fallen off the bus does not hide the others."""
    gpus, notes = read_nvidia(Nvml(fixture("nvidia_rtx4090"), lost=(0,)))
    assert [gpu.index for gpu in gpus] == [1]
    assert "GPU 0" in notes[0]


def test_a_card_without_memory_of_its_own_is_read():
    """Grace and Jetson answer "not supported"."""
    content = fixture("nvidia_h100")
    content["cards"][0]["memory_bytes"] = None
    [gpu], _ = read_nvidia(Nvml(content))
    assert gpu.memory_bytes == 0


def test_this_machines_nvidia_driver_is_asked_without_a_crash():
    """With the real library: cards where there are some, else nothing."""
    gpus, notes = read_nvidia()
    assert all(gpu.uuid for gpu in gpus)
    assert all(isinstance(note, str) for note in notes)


def test_amd_cards_are_read(tmp_path):
    """Memory is counted in mebibytes; the render node is what a container is given."""
    library = AmdSmi(fixture("amd_mi300x"))
    [gpu], notes = read_amd(library, drm=tmp_path)
    assert notes == ()
    assert (gpu.vendor, gpu.model, gpu.memory_bytes) == ("amd", "AMD Instinct MI300X", 196592 * MIB)
    assert (gpu.render_node, gpu.pci_bus_id, gpu.driver) == ("renderD128", "0000:05:00.0", "6.10.5")
    assert not library.is_open


def test_an_amd_render_node_is_told_from_the_kernels_list_where_the_library_is_old(tmp_path):
    """The card is found there by its bus address."""
    device = tmp_path / "pci" / "0000:05:00.0"
    device.mkdir(parents=True)
    (tmp_path / "renderD130").mkdir()
    (tmp_path / "renderD130" / "device").symlink_to(device)
    [gpu], _ = read_amd(AmdSmi(fixture("amd_mi350x")), drm=tmp_path)
    assert gpu.render_node == "renderD130"


def test_an_amd_card_without_render_node_is_noted(tmp_path):
    """It is shown and cannot be lent."""
    [gpu], notes = read_amd(AmdSmi(fixture("amd_mi350x")), drm=tmp_path)
    assert gpu.render_node == ""
    assert "no render node" in notes[0]


@pytest.mark.parametrize(("call", "count"), [("init", 0), ("handles", 0), ("asic", 0), ("driver", 1)])
def test_a_broken_amd_driver_becomes_a_note(tmp_path, call, count):
    """Only the driver's version can be done without."""
    gpus, notes = read_amd(AmdSmi(fixture("amd_mi300x"), broken=(call,)), drm=tmp_path)
    assert len(gpus) == count
    assert bool(notes) == (count == 0)


def test_an_amd_card_without_its_library_is_noted(tmp_path, capsys):
    """The kernel shows the card; what is missing is said, and nothing is printed."""
    (tmp_path / "renderD128" / "device").mkdir(parents=True)
    (tmp_path / "renderD128" / "device" / "vendor").write_text("0x1002\n")
    gpus, notes = read_amd(drm=tmp_path)
    assert gpus == ()
    assert notes == () or "amd-smi-lib" in notes[0] or "AMD" in notes[0]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "model", "vendor", "architecture"),
    [
        ("amd", "AMD EPYC", "amd", "x86_64"),
        ("intel", "Intel(R) Core(TM) i5-2500K CPU @ 3.30GHz", "intel", "x86_64"),
        ("apple", "Apple M2", "apple", "arm64"),
        ("bare", "aarch64", "", "aarch64"),
    ],
)
def test_processors_are_named(name, model, vendor, architecture):
    """Intel, AMD and Apple, and one of which nothing but its architecture is known."""
    cpu = cpu_from(fixture("cpus")["cpus"][name], cores=8)
    assert (cpu.model, cpu.vendor, cpu.architecture, cpu.cores) == (model, vendor, architecture, 8.0)


async def test_this_machines_processor_memory_and_disk_are_read():
    """The real readers, on whatever this is."""
    cpu, notes = await read_cpu()
    assert cpu.cores >= 1
    assert cpu.model
    assert notes == ()
    assert memory_bytes() > GIB / 4
    assert disk_free_bytes()[0] > 0
    assert disk_free_bytes(Path("/no/such/place"))[1] != ()


def test_engine_facts_survive_missing_fields():
    """An engine that tells little is one that can do little."""
    facts = engine_facts({}, {"ApiVersion": "nonsense"})
    assert facts.api_version == (0, 0)
    assert not facts.has_memory_limit
    assert not facts.has_nvidia_runtime
    full = engine_facts(
        {"ID": "X", "ServerVersion": "20.10.24", "Runtimes": {"runc": {}, "nvidia": {}}, "CpuCfsQuota": True,
         "MemoryLimit": True, "PidsLimit": True, "SecurityOptions": ["name=seccomp", "name=rootless"]},
        {"ApiVersion": "1.41"},
    )  # fmt: skip
    assert full.api_version == (1, 41)
    assert full.has_nvidia_runtime
    assert full.is_rootless
