# SPDX-License-Identifier: Apache-2.0
"""How long the gateway waits for a Triton that starts after it."""

import asyncio
import time

import pytest

from service.core.errors import UnavailableError
from service.engines import triton_waiting
from service.engines.triton_waiting import FirstAnswer


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(triton_waiting, "_FIRST_PAUSE_SECONDS", 0.01)


class Server:
    """Answers from the given call on.

    Attributes:
        calls: How often it was asked.
    """

    def __init__(self, away):
        self.calls = 0
        self.away = away

    async def ask(self):
        self.calls += 1
        if self.calls <= self.away:
            raise UnavailableError("ENGINE_UNREACHABLE", "Away.", retry_after=1.0)
        return "families"


async def test_it_asks_until_there_is_an_answer():
    server = Server(away=3)
    assert await FirstAnswer(30.0).wait_for(server.ask) == "families"
    assert server.calls == 4


async def test_it_gives_up_in_time():
    server = Server(away=1000)
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        await FirstAnswer(0.1).wait_for(server.ask)
    assert 0.1 <= time.monotonic() - started < 5
    assert server.calls > 1


async def test_without_patience_it_asks_once():
    server = Server(away=1)
    with pytest.raises(UnavailableError):
        await FirstAnswer(0.0).wait_for(server.ask)
    assert server.calls == 1


async def test_after_a_first_answer_it_waits_no_more():
    server = Server(away=0)
    first = FirstAnswer(30.0)
    await first.wait_for(server.ask)
    server.away = 1000
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(first.wait_for(server.ask), 5)
    assert server.calls == 2


async def test_other_errors_are_told_at_once():
    async def ask():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await FirstAnswer(30.0).wait_for(ask)
