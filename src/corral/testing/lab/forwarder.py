"""
The process that is the internet of one lab: one TUN device in each machine's network namespace, all held here.

It is told what to do over a Unix socket, one JSON object per line, so that another shell can cut a link. When it ends,
for whatever reason, the devices vanish with it. Run as `python -m corral.testing.lab.forwarder FOLDER SEED`.
"""

import ctypes
import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from corral.core.errors import CorralError
from corral.testing.lab.errors import LabFailed, LabRefused
from corral.testing.lab.internet import Internet, Site
from corral.testing.lab.links import Shape
from corral.testing.lab.nat import NatKind

DEVICE = "wan"
MTU_BYTES = 1500
BATCH = 128
"""Packets read from one machine before the next has its turn."""
SWEEP_S = 30.0
LINE_BYTES_MAX = 64 * 2**10
SOCKET_NAME = "internet.sock"

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_READ_BYTES = 2048


def open_tun(namespace: str, name: str) -> int:
    """
    Makes a TUN device in another network namespace.

    Args:
        namespace: path like `/proc/PID/ns/net`.
        name: of the device.

    Returns:
        A non-blocking descriptor: packets without any header are read from it and written to it.

    Raises:
        LabFailed: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), -1
    try:
        there = os.open(namespace, os.O_RDONLY)
        if libc.setns(there, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
            except OSError:
                os.close(device)
                raise
        finally:
            if libc.setns(home, _CLONE_NEWNET) != 0:
                os._exit(70)  # In a stranger's namespace nothing that follows would be right.
    except OSError as error:
        raise LabFailed(f"no TUN device could be made in {namespace}: {error}") from error
    finally:
        os.close(home)
        if there >= 0:
            os.close(there)
    return device


class Forwarder:
    """The loop around an `Internet`. One thread; nothing in it waits but the poll."""

    def __init__(self, listener: socket.socket, *, seed: int) -> None:
        self.internet = Internet(seed)
        self._listener = listener
        self._listener.setblocking(False)
        self._sites: dict[int, Site] = {}
        self._visitors: dict[int, tuple[socket.socket, bytearray]] = {}
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._is_over = False

    def run(self) -> None:
        """Forwards until it is told to stop."""
        sweep_at_s = time.monotonic() + SWEEP_S
        while not self._is_over:
            now_s = time.monotonic()
            for handle, packet in self.internet.due(now_s):
                self._write(handle, packet)
            if now_s >= sweep_at_s:
                self.internet.forget_idle(now_s)
                sweep_at_s = now_s + SWEEP_S
            next_at_s = self.internet.next_at_s()
            wait_s = min(sweep_at_s, next_at_s if next_at_s is not None else sweep_at_s) - time.monotonic()
            for handle, events in self._poll.poll(max(0.0, wait_s)):
                site = self._sites.get(handle)
                if site is not None:
                    self._read_packets(site)
                elif handle == self._listener.fileno():
                    self._welcome()
                elif handle in self._visitors:
                    self._listen_to(handle, events)

    def _read_packets(self, site: Site) -> None:
        """The hot path: on an express way a packet costs two system calls and two look-ups."""
        read, write, carry, get = os.read, os.write, self.internet.carry, site.ways.get
        handle, address, counts = site.handle, site.outer, self.internet.counts
        now_s = time.monotonic()
        for _ in range(BATCH):
            try:
                packet = read(handle, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # Its network namespace is gone, and the device with it.
                self._lose(site)
                return
            way = get(packet[16:20])
            if way is not None and way.is_express and packet[12:16] == address and packet[0] == 0x45:
                try:
                    write(way.handle, packet)
                    counts.carried += 1
                except OSError:
                    counts.overflowed += 1
            elif (arrived := carry(site, packet, now_s)) is not None:
                self._write(*arrived)

    def _write(self, handle: int, packet: bytes) -> None:
        try:
            os.write(handle, packet)
        except OSError:
            # Its receive queue is full, or the device is not up: a real line drops packets then, too.
            self.internet.counts.overflowed += 1

    def _lose(self, site: Site) -> None:
        """A machine is gone, and its device with it."""
        with suppress(OSError):
            self._poll.unregister(site.handle)
        os.close(site.handle)
        del self._sites[site.handle]
        self.internet.detach(site.name)

    def _welcome(self) -> None:
        with suppress(BlockingIOError):
            visitor, _ = self._listener.accept()
            visitor.setblocking(False)
            self._visitors[visitor.fileno()] = visitor, bytearray()
            self._poll.register(visitor.fileno(), select.EPOLLIN)

    def _listen_to(self, handle: int, events: int) -> None:
        visitor, heard = self._visitors[handle]
        said = b""
        with suppress(OSError):
            said = visitor.recv(LINE_BYTES_MAX)
        heard += said
        if not said or events & select.EPOLLHUP or len(heard) > LINE_BYTES_MAX:
            self._dismiss(handle)
            if not said:
                return
        while b"\n" in heard:
            line, _, rest = bytes(heard).partition(b"\n")
            heard[:] = rest
            with suppress(OSError):
                visitor.send(json.dumps(self._answer(line)).encode() + b"\n")

    def _dismiss(self, handle: int) -> None:
        visitor, _ = self._visitors.pop(handle)
        self._poll.unregister(handle)
        visitor.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            return {"ok": self._do(str(asked.pop("do")), asked)}
        except CorralError as error:
            return {"error": error.message, "hint": error.hint, "code": error.code}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return {"error": f"not understood: {error!r}", "hint": None, "code": LabRefused.code}

    def _do(self, what: str, asked: dict[str, Any]) -> Any:
        match what:
            case "attach":
                return self._attach(**asked)
            case "detach":
                site = self.internet.site(asked["name"])
                return self._lose(site)
            case "link":
                return self.internet.shape_link(asked["name"], asked["changes"]).as_dict()
            case "way":
                return self.internet.shape_way(asked["source"], asked["target"], asked["changes"]).as_dict()
            case "cut":
                return self.internet.set_cut(asked["source"], asked["target"], is_cut=bool(asked["is_cut"]))
            case "status":
                return self.internet.status()
            case "stop":
                self._is_over = True
                return None
            case _:
                raise LabRefused(f"the internet cannot {what}")

    def _attach(self, name: str, pid: int, inner: str, outer: str, nat: str, shape: dict[str, float] | None) -> None:
        device = open_tun(f"/proc/{int(pid)}/ns/net", DEVICE)
        try:
            site = self.internet.attach(
                name, handle=device, inner=inner, outer=outer, nat=NatKind(nat), shape=Shape(**shape) if shape else None
            )
        except BaseException:
            os.close(device)
            raise
        self._sites[device] = site
        self._poll.register(device, select.EPOLLIN)


def ask(folder: Path, what: str, **arguments: Any) -> Any:
    """
    Tells the forwarder of a lab something and returns its answer.

    Raises:
        LabFailed: it does not answer.
        LabRefused: it refused.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(str(folder / SOCKET_NAME))
            connection.sendall(json.dumps({"do": what, **arguments}).encode() + b"\n")
            heard = b""
            while not heard.endswith(b"\n"):
                said = connection.recv(LINE_BYTES_MAX)
                if not said:
                    raise OSError(errno.ECONNRESET, "it hung up")
                heard += said
        except OSError as error:
            raise LabFailed(
                f"the internet of the lab in {folder} does not answer: {error}", hint="scripts/lab down"
            ) from error
    answer = json.loads(heard)
    if "error" in answer:
        kind = LabFailed if answer["code"] == LabFailed.code else LabRefused
        raise kind(answer["error"], hint=answer["hint"])
    return answer["ok"]


def main(arguments: list[str]) -> None:
    """Listens in the folder and forwards until told to stop."""
    folder, seed = Path(arguments[0]), int(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    path = folder / SOCKET_NAME
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)
    # Nothing here makes cycles, and a collection would hold up packets.
    gc.disable()
    Forwarder(listener, seed=seed).run()
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
