"""This machine in the mesh of a cluster."""

import signal
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from corral.cli.clusters import ClusterArgument
from corral.cli.output import JsonOption, is_json, put, put_json, say
from corral.cli.session import client

if TYPE_CHECKING:
    from corral.sdk.connect import Told
    from corral.sdk.forward import Told as ForwardTold


def connect(
    cluster: ClusterArgument,
    ports: Annotated[
        list[str] | None,
        typer.Option(
            "--forward",
            metavar="[LOCAL:]PORT",
            help="Instead, and without root: a port of 127.0.0.1 that leads to this port of the head; repeatable.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """
    Make this machine a member of a cluster's network, until Ctrl-C: every port of every node, and Ray itself.

    Needs root on Linux, with `wg`, `nft` and `ip`. The nodes cannot open connections to this machine.
    """
    if ports:
        _forward(cluster, ports)
        return
    from corral.sdk.connect import Connection

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        Connection(cluster, _tell).run()
    except KeyboardInterrupt:
        say("this machine has left the mesh")


def _forward(cluster: str, ports: "list[str]") -> None:
    import asyncio

    from corral.sdk.connect import forget_token, write_token
    from corral.sdk.forward import forward, parse_forward

    wishes = [parse_forward(text) for text in ports]
    with client() as corral:
        found = corral.cluster(cluster)
        gateway = corral.gateway(found.id)
        access = corral.ray_access(found.id)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        token_path = str(write_token(found.id, access.token))
        say(f"token    {_token_line(token_path)}")
        asyncio.run(forward(gateway, wishes, lambda told: _tell_forward(told, token_path)))
    except KeyboardInterrupt:
        say("the ports are closed")
    finally:
        forget_token(found.id)


def _token_line(path: str) -> str:
    return f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={path}"


def _tell_forward(told: "ForwardTold", token_path: str) -> None:
    from corral.sdk.forward import Listening

    if not isinstance(told, Listening):
        say(f"a connection to port {told.remote} was closed: {told.reason}")
    elif is_json():
        put_json({"local": f"127.0.0.1:{told.local}", "remote": told.remote, "token_path": token_path})
    else:
        put(f"127.0.0.1:{told.local} leads to port {told.remote} of the head; Ctrl-C closes it")


def _tell(told: "Told") -> None:
    from corral.sdk.connect import Away, Connected, Reached

    match told:
        case Connected():
            _put_connected(told)
        case Reached(answering, members, relayed):
            through = f", {relayed} through a relay" if relayed else ""
            say(f"{answering} of {members} nodes answer{through}")
        case Away(True):
            say("the control plane does not answer; the mesh goes on, and follows no changes meanwhile")
        case Away():
            say("the control plane answers again")


def _put_connected(told: "Told") -> None:
    from dataclasses import asdict

    from corral.sdk.connect import Connected

    assert isinstance(told, Connected)
    if is_json():
        put_json({**asdict(told), "ray_address": told.ray_address})
        return
    say(f"connected to {told.cluster}; Ctrl-C leaves it")
    put(f"address  {told.address} in {told.network}")
    put(f"head     {told.head_address}")
    put(f"ray      {told.ray_address}")
    put(f"token    {_token_line(told.token_path)}")


def _interrupt(*_: "int | FrameType | None") -> NoReturn:
    raise KeyboardInterrupt
