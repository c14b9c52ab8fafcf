"""The mesh container of a node: the member's program, spoken with over stdin and stdout."""

import os
import signal
from typing import NoReturn

from corral_program import ControlInput, emit, end_as_fatal

from corral.member.commands import Fatal
from corral.member.mesh import Mesh, load_firewall, read_settings


def main() -> None:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        settings = read_settings(dict(os.environ))
        load_firewall(settings)
        Mesh(settings, ControlInput(), emit).run()
    except Fatal as error:
        end_as_fatal(str(error))


def _end(*_: object) -> NoReturn:
    os._exit(0)
