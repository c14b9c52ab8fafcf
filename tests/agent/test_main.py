"""What the agent's program says at its end."""

import asyncio

import pytest

from corral.agent.__main__ import print_reason
from corral.agent.runtime import EngineUnreachable


async def _lose_the_engine() -> None:
    raise EngineUnreachable("the container engine does not answer", hint="start it")


async def _run_loops() -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(asyncio.Event().wait())
        async with asyncio.TaskGroup() as inner:
            inner.create_task(_lose_the_engine())


async def test_a_known_reason_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """However deep in the loops it arises: what happened and what helps, no stack trace."""
    with pytest.raises(ExceptionGroup) as raised:
        await _run_loops()
    print_reason(raised.value)
    assert capsys.readouterr().err == "error: the container engine does not answer\nhint: start it\n"
