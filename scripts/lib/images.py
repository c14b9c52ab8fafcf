"""The three images, each built only when no image with the label of its recipe exists.

A recipe is a digest over everything that goes into an image. Base images come from the registry that the Engine is
configured with; where none answers, the same suites are made with debootstrap, and then nothing inside a build needs a
network. Wheels are fetched outside, against the hashes of a lock, and installed inside without an index.
"""

import json
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from lib.environment import BUILD_LOCK, TOOLS, UV, ensure_tools
from lib.machine import ask_engine, install
from lib.steps import CACHE, ROOT, SetupFailed, digest_of, run, say, step

IMAGES = ROOT / "images"
RESULT = CACHE / "images.json"
PULL_S = 300
AGENT_WHEELS = "corral-build:agent-wheels"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class Suite(NamedTuple):
    """A Debian suite, and what debootstrap puts into it besides the minimal base."""

    name: str
    packages: tuple[str, ...]
    glibc_minor: int  # the newest manylinux tag whose wheels run on it


TRIXIE = Suite(
    "trixie",
    ("ca-certificates", "iproute2", "nftables", "nginx-light", "python3", "wireguard-go", "wireguard-tools"),
    41,
)
BOOKWORM = Suite("bookworm", ("ca-certificates", "python3"), 36)

_PACKAGE = ROOT / "src" / "corral"
PACKAGE_IN_NET = [
    *(_PACKAGE / "protocol" / name for name in ("__init__.py", "path_mtu.py", "paths.py")),
    *sorted((_PACKAGE / "member").glob("*.py")),
]
"""What the mesh container shares with the rest; it needs nothing but the standard library."""

# Taken out of a debootstrap base: caches, and documents that nobody reads in a container.
_CLEARED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
)


class Options(NamedTuple):
    """What the caller may choose about corral-ray."""

    ray_base: str | None = None  # an image with Python 3.11, such as Ray's own for GPUs
    torch: str | None = None  # version of PyTorch


class Builder:
    """Brings the images of one checkout to their recipes."""

    def __init__(self, architecture: str, options: Options) -> None:
        self._architecture, self._options = architecture, options

    def ensure(self) -> dict[str, str]:
        """Ids of the three images, built where needed, and written to `.cache/images.json`."""
        net_sources = [IMAGES / "net", IMAGES / "common", *PACKAGE_IN_NET]
        net_recipe = digest_of(net_sources, self._architecture, "net", *TRIXIE.packages)
        ray_recipe = digest_of(
            [IMAGES / "ray", IMAGES / "common"], self._architecture, "ray", *BOOKWORM.packages, repr(self._options)
        )
        net, ray = self._existing("corral-net", net_recipe), self._existing("corral-ray", ray_recipe)
        with ThreadPoolExecutor(2) as pool:
            ray_build = pool.submit(lambda: ray or self._build_ray(ray_recipe))
            net = net or self._build_net(net_recipe)
            agent_recipe = digest_of(
                [IMAGES / "agent", ROOT / "requirements" / "agent.txt", ROOT / "pyproject.toml", ROOT / "src"],
                *(self._architecture, "agent", net),
            )
            agent = self._existing("corral-agent", agent_recipe) or self._build_agent(agent_recipe, net)
            ray = ray_build.result()
        images = {"corral-net": net, "corral-agent": agent, "corral-ray": ray}
        text = json.dumps(images, indent=2) + "\n"
        former = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        if former != images:
            CACHE.mkdir(exist_ok=True)
            partial = RESULT.with_suffix(".tmp")
            partial.write_text(text)
            partial.replace(RESULT)
            self._remove_superseded([identifier for identifier in former.values() if identifier not in images.values()])
        return images

    def _existing(self, name: str, recipe: str) -> str | None:
        filters = quote(json.dumps({"label": [f"corral.image={name}", f"corral.recipe={recipe}"]}))
        status, found = ask_engine(f"/images/json?filters={filters}")
        if status != 200:
            raise SetupFailed(f"the Engine did not list its images (status {status})")
        return found[0]["Id"] if found else None

    def _build_net(self, recipe: str) -> str:
        with _context() as folder:
            package = folder / "net" / "corral"
            package.mkdir()
            (package / "__init__.py").write_text('"""The part of Corral that runs in this image."""\n')
            for source in PACKAGE_IN_NET:
                target = package / source.relative_to(_PACKAGE)
                target.parent.mkdir(exist_ok=True)
                shutil.copy(source, target)
            base, network = self._base(TRIXIE)
            return self._build("corral-net", "net/Dockerfile", folder, recipe, network, {"BASE": base})

    def _build_ray(self, recipe: str) -> str:
        options = self._options
        with _context() as folder:
            base, network = (options.ray_base, "default") if options.ray_base else self._base(BOOKWORM)
            arguments = {"BASE": base}
            if options.torch:
                network, arguments["TORCH"] = "default", options.torch
            lock = IMAGES / "ray" / "requirements.txt"
            self._wheels("ray", [lock], folder / "wheels", python="3.11", glibc_minor=BOOKWORM.glibc_minor)
            return self._build("corral-ray", "ray/Dockerfile", folder, recipe, network, arguments)

    def _build_agent(self, recipe: str, net: str) -> str:
        with _context() as folder:
            lock = ROOT / "requirements" / "agent.txt"
            pip_lock = IMAGES / "agent" / "pip.txt"
            self._wheels("agent", [lock, pip_lock], folder / "wheels", python="3.13", glibc_minor=TRIXIE.glibc_minor)
            shutil.copy(lock, folder / "agent.txt")
            ensure_tools()
            build = ("build", "-q", "--wheel", "--build-constraints", BUILD_LOCK, "--require-hashes")
            run((UV, *build, "--out-dir", folder / "project", ROOT), what="building the project's wheel")
            (folder / "images.json").write_text(json.dumps({"corral-net": net}) + "\n")
            return self._build("corral-agent", "agent/Dockerfile", folder, recipe, "none", {"BASE": net})

    def _build(
        self, name: str, dockerfile: str, folder: Path, recipe: str, network: str, arguments: dict[str, str]
    ) -> str:
        def build(tag: str, *words: str) -> None:
            for key, value in {"RECIPE": recipe, **arguments}.items():
                words += ("--build-arg", f"{key}={value}")
            # The classic builder is what Debian's own Docker has; a newer one builds the same files.
            environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
            command = ("docker", "build", "-q", "-f", folder / dockerfile, "-t", tag, "--network", network)
            run((*command, *words, folder), what=f"building {name}", env=environment)

        def work() -> str:
            if name == "corral-agent":
                # Kept by its tag: the next build, after a change of our code, then takes seconds.
                former = ask_engine(f"/images/{AGENT_WHEELS}/json")
                build(AGENT_WHEELS, "--target", "install")
                if former[0] == 200:
                    self._remove_superseded([former[1]["Id"]])
            build(f"{name}:latest")
            identifier = self._existing(name, recipe)
            if identifier is None:
                raise SetupFailed(f"{name} was built, but the Engine does not list it")
            return identifier

        identifier = step(f"image {name}", work)
        self._remove_stages(recipe)
        return identifier

    def _remove_superseded(self, identifiers: list[str]) -> None:
        """Remove what this checkout used until now, unless it has a tag or a container."""
        for identifier in identifiers:
            status, image = ask_engine(f"/images/{identifier}/json")
            if status == 200 and not image.get("RepoTags"):
                with suppress(SetupFailed):
                    run(("docker", "rmi", identifier), what="removing a superseded image")

    def _remove_stages(self, recipe: str) -> None:
        """Remove what a build with stages leaves behind: for corral-ray a gigabyte."""
        filters = ("--filter", "dangling=true", "--filter", f"label=corral.stage={recipe}")
        found = run(("docker", "images", "-q", *filters), what="listing build stages").split()
        with suppress(SetupFailed):  # in use by another build: it stays
            if found:
                run(("docker", "rmi", *found), what="removing build stages")

    def _base(self, suite: Suite) -> tuple[str, str]:
        """A base image of a Debian suite, and the network that a build on it needs."""
        ordinary = f"debian:{suite.name}-slim"
        own = f"corral-base:{suite.name}-{digest_of([], self._architecture, *suite.packages)[:12]}"
        if ask_engine(f"/images/{ordinary}/json")[0] == 200 or _pull(ordinary):
            return ordinary, "default"
        if ask_engine(f"/images/{own}/json")[0] != 200:
            self._debootstrap(suite, own)
        return own, "none"

    def _debootstrap(self, suite: Suite, tag: str) -> None:
        if shutil.which("debootstrap") is None:
            install({"debootstrap": "makes base images, because no container registry answers"})
        if os.geteuid() != 0:
            raise SetupFailed("no container registry answers, and making a base image with debootstrap needs root")

        def work() -> None:
            with tempfile.TemporaryDirectory(prefix="corral-base-", dir=CACHE) as scratch:
                root = Path(scratch) / "root"
                options = ("--variant=minbase", f"--arch={self._architecture}", f"--include={','.join(suite.packages)}")
                run(("debootstrap", *options, suite.name, root), what=f"debootstrap {suite.name}")
                for folder in _CLEARED:
                    for entry in (root / folder).iterdir() if (root / folder).is_dir() else ():
                        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
                packed = subprocess.Popen(
                    ("tar", "-C", root, "--numeric-owner", "--exclude=./dev/*", "-c", "."), stdout=subprocess.PIPE
                )
                try:
                    done = subprocess.run(
                        ("docker", "import", "-c", "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin", "-", tag),
                        stdin=packed.stdout,
                        capture_output=True,
                        check=False,
                    )
                finally:
                    assert packed.stdout is not None
                    packed.stdout.close()
                    packed_status = packed.wait()
                if done.returncode != 0 or packed_status != 0:
                    raise SetupFailed(
                        f"importing the base image {tag} failed: {done.stderr.decode(errors='replace').strip()}"
                    )

        step(f"base image of Debian {suite.name} with debootstrap", work)

    def _wheels(self, name: str, locks: list[Path], target: Path, *, python: str, glibc_minor: int) -> None:
        """Put the wheels of `locks` for the images' Python and architecture into `target`."""
        ensure_tools()
        machine = MACHINES[self._architecture]
        kept = CACHE / "wheels" / f"{name}-{machine}"
        stamp = kept / "lock"
        wanted = digest_of(locks, python, machine)
        if not stamp.exists() or stamp.read_text() != wanted:

            def work() -> None:
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir(parents=True)
                pip = TOOLS / "bin" / "python"
                newest_first = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc_minor, 4, -1)]
                platforms = [
                    *newest_first,
                    f"manylinux2014_{machine}",
                    f"manylinux2010_{machine}",
                    f"manylinux1_{machine}",
                ]
                tag = f"cp{python.replace('.', '')}"
                options = [
                    *("-q", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:", "--no-deps"),
                    *("--python-version", python, "--implementation", "cp", "--dest", kept),
                    *(word for abi in (tag, "abi3", "none") for word in ("--abi", abi)),
                    *(word for platform in platforms for word in ("--platform", platform)),
                ]
                for lock in locks:
                    chosen = kept / f"{lock.stem}.chosen"
                    chosen.write_text(run((pip, "-c", _CHOOSE, lock, python, machine), what=f"reading {lock.name}"))
                    run(
                        (pip, "-m", "pip", "download", *options, "-r", chosen),
                        what=f"fetching the wheels of {lock.name}",
                    )
                    chosen.unlink()
                stamp.write_text(wanted)

            step(f"wheels of corral-{name}", work)
        target.mkdir()
        for wheel in kept.glob("*.whl"):
            shutil.copy(wheel, target)


# pip evaluates a lock's markers for the Python that runs it. This prints the lines that hold for the image's Python.
_CHOOSE = r"""
import re, sys
from pathlib import Path
from pip._vendor.packaging.markers import Marker
lock, python, machine = sys.argv[1:]
target = {"python_version": python, "python_full_version": python + ".0", "platform_machine": machine, "extra": ""}
for entry in re.split(r"\n(?=\S)", Path(lock).read_text()):
    head, hashes, rest = entry.partition(" \\\n")
    name, semicolon, marker = head.partition(" ; ")
    if name.strip() and not name.startswith("#") and (not semicolon or Marker(marker).evaluate(target)):
        print(name + hashes + rest)
"""


def _pull(image: str) -> bool:
    """Whether the Engine got `image` from its registry."""
    try:
        done = subprocess.run(("docker", "pull", "-q", image), capture_output=True, timeout=PULL_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode != 0:
        say(f"{image} cannot be pulled: no container registry answers; debootstrap makes the base instead")
    return done.returncode == 0


def _context() -> "_Context":
    return _Context()


class _Context:
    """A build context: the folder `images/`, to which wheels are added, gone afterwards."""

    def __enter__(self) -> Path:
        CACHE.mkdir(exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory(prefix="context-", dir=CACHE)
        folder = Path(self._scratch.name) / "images"
        shutil.copytree(IMAGES, folder, ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()
