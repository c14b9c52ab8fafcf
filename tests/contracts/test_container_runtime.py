"""One contract for the container runtime: on the fake engine, and on a real one."""

import asyncio
import io
import json
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from corral.agent.docker import DockerRuntime
from corral.agent.runtime import (
    LABEL_HOST,
    Body,
    ContainerMissing,
    ContainerRefused,
    ContainerRuntime,
    ImageMissing,
    NameTaken,
)
from corral.testing.fake_runtime import FakeEngine, FakeRuntime

IMAGES = Path(__file__).parents[2] / ".cache" / "images.json"
CAT = ["/bin/cat"]
FAILS = ["/bin/sh", "-c", "echo broken >&2; exit 7"]
NOISE = ["/bin/sh", "-c", "printf 'bad \\377\\nlast\\n' >&2; exit 7"]
STUBBORN = ["/bin/sleep", "600"]


class Bench:
    """A runtime under test, a second agent's view of the same engine, and an image to run."""

    def __init__(self, runtime: ContainerRuntime, other: ContainerRuntime, *, image: str, host_id: str, other_id: str):
        self.runtime, self.other, self.image = runtime, other, image
        self.host_id, self.other_id = host_id, other_id
        self.prefix = f"{host_id}-"

    def body(self, command: list[str], *, host_id: str | None = None, network: str = "bridge") -> Body:
        """A small closed body."""
        return {
            "Image": self.image,
            "Entrypoint": command,
            "Cmd": [],
            "Labels": {LABEL_HOST: host_id or self.host_id, "corral.part": "work"},
            "OpenStdin": True,
            "StdinOnce": False,
            "Tty": False,
            "HostConfig": {"NetworkMode": network, "Memory": 32 * 2**20, "PidsLimit": 16},
        }

    async def run(self, name: str, command: list[str]) -> str:
        """Creates and starts a container; its full name."""
        await self.runtime.create(self.prefix + name, self.body(command))
        await self.runtime.start(self.prefix + name)
        return self.prefix + name


async def until_exited(runtime: ContainerRuntime, name: str) -> int | None:
    """The exit code of a container, once it has one."""
    async with asyncio.timeout(20):
        while True:
            found = await runtime.inspect(name)
            if found is not None and found.state == "exited":
                return found.exit_code
            await asyncio.sleep(0.01)


class ContainerRuntimeContract:
    async def test_creating_a_container_twice_leaves_one(self, bench: Bench) -> None:
        """Create is idempotent under a deterministic name, and start under a running container."""
        name = await bench.run("once", CAT)
        await bench.runtime.create(name, bench.body(CAT))
        await bench.runtime.start(name)
        assert [(one.name, one.state) for one in await bench.runtime.list_ours()] == [(name, "running")]

    async def test_removing_a_container_twice_is_fine(self, bench: Bench) -> None:
        """Stop and remove of what is gone succeed."""
        name = await bench.run("gone", CAT)
        await bench.runtime.stop(name, grace_s=0)
        for _ in range(2):
            await bench.runtime.remove(name)
            await bench.runtime.stop(name, grace_s=0)
        assert await bench.runtime.list_ours() == ()
        assert await bench.runtime.inspect(name) is None

    async def test_only_our_label_is_listed(self, bench: Bench) -> None:
        """Another host's containers on the same engine are not seen."""
        mine = await bench.run("mine", CAT)
        theirs = bench.prefix + "theirs"
        await bench.other.create(theirs, bench.body(CAT, host_id=bench.other_id))
        assert [one.name for one in await bench.runtime.list_ours()] == [mine]
        assert await bench.runtime.inspect(theirs) is None

    async def test_a_foreign_container_is_never_touched(self, bench: Bench) -> None:
        """Not by create, start, attach, stop, remove or a look at its log."""
        theirs = bench.prefix + "theirs"
        await bench.other.create(theirs, bench.body(CAT, host_id=bench.other_id))
        await bench.other.start(theirs)
        with pytest.raises(NameTaken, match="not ours"):
            await bench.runtime.create(theirs, bench.body(CAT))
        with pytest.raises(ContainerMissing):
            await bench.runtime.start(theirs)
        with pytest.raises(ContainerMissing):
            await bench.runtime.attach(theirs)
        await bench.runtime.stop(theirs, grace_s=0)
        await bench.runtime.remove(theirs)
        assert await bench.runtime.last_errors(theirs, lines=5) == ()
        found = await bench.other.inspect(theirs)
        assert found is not None
        assert found.state == "running"

    async def test_lines_go_in_and_come_out(self, bench: Bench) -> None:
        """Attached before the start, nothing is lost, not even what was sent before it; a line may be long."""
        name = bench.prefix + "echo"
        await bench.runtime.create(name, bench.body(CAT))
        channel = await bench.runtime.attach(name)
        await channel.send(b"first")
        await bench.runtime.start(name)
        long = b"x" * 200_000
        await channel.send(long)
        lines = aiter(channel.lines())
        async with asyncio.timeout(20):
            assert [await anext(lines), await anext(lines)] == [b"first", long]
        await channel.close()
        await channel.close()

    async def test_attaching_again_sees_later_lines(self, bench: Bench) -> None:
        """Detaching leaves stdin open; whoever attaches next, as after our restart, goes on with it."""
        name = await bench.run("again", CAT)
        first = await bench.runtime.attach(name)
        await first.send(b"before")
        async with asyncio.timeout(20):
            assert await anext(aiter(first.lines())) == b"before"
        await first.close()
        second = await bench.runtime.attach(name)
        await second.send(b"after")
        async with asyncio.timeout(20):
            assert await anext(aiter(second.lines())) == b"after"
        await second.close()
        found = await bench.runtime.inspect(name)
        assert found is not None
        assert found.state == "running"

    async def test_a_container_that_dies_is_seen_as_exited(self, bench: Bench) -> None:
        """With its status, its last words on stderr, and the end of its channel."""
        name = bench.prefix + "dies"
        await bench.runtime.create(name, bench.body(FAILS))
        channel = await bench.runtime.attach(name)
        await bench.runtime.start(name)
        async with asyncio.timeout(20):
            assert [line async for line in channel.lines()] == []
        assert await until_exited(bench.runtime, name) == 7
        assert [(one.state, one.exit_code) for one in await bench.runtime.list_ours()] == [("exited", 7)]
        assert await bench.runtime.last_errors(name, lines=5) == ("broken",)
        await channel.close()

    async def test_attaching_to_a_container_that_ended_hears_nothing(self, bench: Bench) -> None:
        """And says so at once, instead of waiting for a line that never comes."""
        name = await bench.run("ended", FAILS)
        await until_exited(bench.runtime, name)
        channel = await bench.runtime.attach(name)
        async with asyncio.timeout(20):
            assert [line async for line in channel.lines()] == []
        await channel.close()

    async def test_an_end_that_was_heard_of_is_in_the_list(self, bench: Bench) -> None:
        """Whoever looks because of an event sees what happened."""
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def listen() -> None:
            async for event in bench.runtime.events():
                heard.put_nowait(event)

        listening = asyncio.create_task(listen())
        name = await bench.run("told", CAT)
        for _ in range(5):
            await bench.runtime.start(name)
            while not heard.empty():
                heard.get_nowait()
            stopping = asyncio.create_task(bench.runtime.stop(name, grace_s=0))
            async with asyncio.timeout(20):
                while True:
                    await heard.get()
                    (shown,) = await bench.runtime.list_ours()
                    if shown.state == "exited":
                        break
            await stopping
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    async def test_sending_to_a_container_that_ended_is_an_error(self, bench: Bench) -> None:
        """Nobody believes that a token was delivered which was not."""
        name = await bench.run("deaf", CAT)
        channel = await bench.runtime.attach(name)
        await bench.runtime.remove(name)
        async with asyncio.timeout(20):
            assert [line async for line in channel.lines()] == []
        await channel.close()
        with pytest.raises(ContainerMissing):
            await channel.send(b"anybody?")

    async def test_a_container_that_ignores_the_end_is_killed(self, bench: Bench) -> None:
        """Stop has a grace, then force."""
        name = await bench.run("stubborn", STUBBORN)
        await bench.runtime.stop(name, grace_s=0)
        assert await until_exited(bench.runtime, name) == 137

    async def test_a_missing_image_is_an_error_and_never_a_pull(self, bench: Bench) -> None:
        """No image appears by itself: whoever wants one fetches it ahead."""
        body = {**bench.body(CAT), "Image": "sha256:" + "0" * 64}
        assert not await bench.runtime.has_image(body["Image"])
        assert await bench.runtime.has_image(bench.image)
        with pytest.raises(ImageMissing, match="not on this host"):
            await bench.runtime.create(bench.prefix + "none", body)
        assert not await bench.runtime.has_image(body["Image"])
        assert await bench.runtime.list_ours() == ()

    async def test_an_image_with_volumes_of_its_own_is_refused(self, bench: Bench, image_with_volume: str) -> None:
        """They would be the only place where a workload could write without a limit."""
        with pytest.raises(ContainerRefused, match="declares volumes"):
            await bench.runtime.create(bench.prefix + "hoard", {**bench.body(CAT), "Image": image_with_volume})
        assert await bench.runtime.list_ours() == ()

    async def test_a_log_that_is_no_text_is_read_all_the_same(self, bench: Bench) -> None:
        """A stranger's program wrote it."""
        name = await bench.run("noise", NOISE)
        await until_exited(bench.runtime, name)
        assert await bench.runtime.last_errors(name, lines=5) == ("bad \ufffd", "last")
        assert await bench.runtime.last_errors(name, lines=1) == ("last",)

    async def test_joining_the_network_of_a_container_that_does_not_run_is_refused(self, bench: Bench) -> None:
        """All containers of a node may be created at once; only the start needs the owner of the network."""
        owner, joiner = bench.prefix + "owner", bench.prefix + "joiner"
        await bench.runtime.create(joiner, bench.body(CAT, network=f"container:{owner}"))
        await bench.runtime.create(owner, bench.body(CAT))
        with pytest.raises(ContainerRefused):
            await bench.runtime.start(joiner)
        await bench.runtime.start(owner)
        await bench.runtime.start(joiner)
        shown = {one.name: one for one in await bench.runtime.list_ours()}
        assert shown[joiner].state == "running"
        assert shown[owner].address.count(".") == 3
        assert shown[joiner].address == ""

    async def test_a_published_port_is_shown(self, bench: Bench) -> None:
        """The engine chooses the port; list and inspection agree on it."""
        name = bench.prefix + "port"
        body = dict(bench.body(CAT))
        body["ExposedPorts"] = {"51820/udp": {}}
        body["HostConfig"] = {
            **body["HostConfig"],
            "PortBindings": {"51820/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        }
        await bench.runtime.create(name, body)
        await bench.runtime.start(name)
        (shown,) = await bench.runtime.list_ours()
        ((address, port, inner),) = shown.published
        assert (address, inner) == ("127.0.0.1", "51820/udp")
        assert 0 < port < 65536
        assert await bench.runtime.inspect(name) == shown

    async def test_changes_are_told_as_they_happen(self, bench: Bench) -> None:
        """An exit is heard of without asking; foreign containers are not."""
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def listen() -> None:
            async for event in bench.runtime.events():
                heard.put_nowait(event)

        listening = asyncio.create_task(listen())
        theirs = bench.prefix + "theirs"
        await bench.other.create(theirs, bench.body(CAT, host_id=bench.other_id))
        name = await bench.run("heard", CAT)
        async with asyncio.timeout(20):
            assert {await heard.get(), await heard.get()} == {name}
        await bench.runtime.stop(name, grace_s=0)
        async with asyncio.timeout(60):
            assert await heard.get() == name
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    async def test_the_engine_tells_about_itself(self, bench: Bench) -> None:
        """API 1.41 is what the bodies are written for."""
        info = await bench.runtime.info()
        assert info.engine_id
        assert tuple(map(int, info.api_version.split("."))) >= (1, 41)
        assert info.cpus > 0
        assert info.memory_bytes > 0


class TestFakeRuntime(ContainerRuntimeContract):
    @pytest.fixture
    def image_with_volume(self) -> str:
        return "sha256:" + "2" * 64

    @pytest.fixture
    async def bench(self, image_with_volume: str) -> Bench:
        image = "sha256:" + "1" * 64
        engine = FakeEngine(images={image, image_with_volume})
        engine.images_with_volumes.add(image_with_volume)
        mine, theirs = FakeRuntime(engine, "host-a"), FakeRuntime(engine, "host-b")
        return Bench(mine, theirs, image=image, host_id="host-a", other_id="host-b")


@pytest.mark.docker
class TestDockerRuntime(ContainerRuntimeContract):
    @pytest.fixture(scope="class")
    def image(self) -> Iterator[str]:
        """The project's network image where it has been built, else a root file system of a static busybox."""
        if IMAGES.exists():
            yield json.loads(IMAGES.read_text())["corral-net"]
            return
        tag = f"corral-contract-{secrets.token_hex(4)}"
        archive = busybox_root()
        made = subprocess.run(
            ["docker", "import", "-c", "ENV PATH=/bin", "-", tag], input=archive, capture_output=True, check=True
        )
        yield made.stdout.decode().strip()
        subprocess.run(["docker", "rmi", tag], capture_output=True, check=True)

    @pytest.fixture(scope="class")
    def image_with_volume(self, image: str) -> Iterator[str]:
        """The same with a volume."""
        name = f"corral-contract-{secrets.token_hex(4)}"
        subprocess.run(["docker", "create", "--name", name, image, "/bin/true"], capture_output=True, check=True)
        made = subprocess.run(
            ["docker", "commit", "-c", "VOLUME /hoard", name], capture_output=True, text=True, check=True
        ).stdout.strip()
        subprocess.run(["docker", "rm", name], capture_output=True, check=True)
        yield made
        subprocess.run(["docker", "rmi", made], capture_output=True, check=True)

    @pytest.fixture
    async def bench(self, image: str) -> AsyncIterator[Bench]:
        word = secrets.token_hex(4)
        host_id, other_id = f"contract-{word}-a", f"contract-{word}-b"
        async with DockerRuntime(host_id) as mine, DockerRuntime(other_id) as theirs:
            yield Bench(mine, theirs, image=image, host_id=host_id, other_id=other_id)
            for runtime in (mine, theirs):
                for container in await runtime.list_ours():
                    await runtime.remove(container.name)


def busybox_root() -> bytes:
    """A tar archive with /bin/busybox and links for the commands used here."""
    found = shutil.which("busybox")
    if found is None:
        pytest.skip("busybox is not installed (Debian: busybox-static)")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(Path(found).resolve(), "bin/busybox")
        for command in ("sh", "cat", "sleep", "echo"):
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()
