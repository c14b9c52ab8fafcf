"""
Passes TCP connections on, as `ssh -L` does. Run as `python -m corral.testing.lab.tunnel HOST:PORT HOST:PORT`.

A gateway in development is reached on its own loopback address only, because it speaks plain HTTP; a renter on another
machine of the lab needs one of these at each end.
"""

import asyncio
import contextlib
import sys


async def serve(listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Accepts connections at `listen` and joins each with a new one to `target`, for ever."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*target)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(accepted, *listen)
    async with server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until this direction is over; the other may go on."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(2**16):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(serve(_address(sys.argv[1]), _address(sys.argv[2])))
