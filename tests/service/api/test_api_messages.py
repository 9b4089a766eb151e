import asyncio

import pytest

from fewseg.v1 import task_service_pb2 as tasks
from service.api.messages import MessageMemory, Messages, MessageTooLargeError, Patience
from service.core.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError


async def never():
    await asyncio.Event().wait()
    yield b""


async def several(*messages):
    for message in messages:
        yield message


def messages_of(raw, limit=100, patience=None, seconds=0.0):
    return Messages(
        raw,
        tasks.GetTaskRequest.FromString,
        limit=limit,
        patience=patience or Patience(),
        seconds=seconds,
    )


async def test_messages_come_parsed_and_in_order():
    sent = [tasks.GetTaskRequest(name=name).SerializeToString() for name in "ab"]
    assert [message.name async for message in messages_of(several(*sent))] == ["a", "b"]


async def test_a_message_is_measured_before_it_is_parsed():
    with pytest.raises(MessageTooLargeError) as caught:
        await messages_of(several(b"\xff" * 101)).read()
    assert caught.value.metadata == {"limit": "100", "size": "101"}


async def test_bytes_that_are_no_message_are_refused():
    with pytest.raises(InvalidArgumentError) as caught:
        await anext(aiter(messages_of(several(b"\xff\xff"))))
    assert caught.value.reason == "MALFORMED_MESSAGE"


async def test_nothing_is_read_after_the_only_message():
    raw = several(b"", b"more")
    messages = messages_of(raw)
    assert await messages.read_only_one() == b""
    assert [data async for data in raw] == []


async def test_patience_ends_for_those_who_wait():
    patience = Patience()
    waiting = asyncio.ensure_future(messages_of(never(), patience=patience).read())
    await asyncio.sleep(0)
    patience.end()
    patience.end()
    with pytest.raises(UnavailableError) as caught:
        await waiting
    assert caught.value.reason == "STOPPING"


async def test_patience_ends_later_for_those_who_are_in_the_middle_of_something():
    patience = Patience()
    patience.end()
    with pytest.raises(UnavailableError):
        await messages_of(several(b""), patience=patience).read()
    assert await messages_of(several(b""), patience=patience, seconds=1.0).read() == b""
    with pytest.raises(UnavailableError):
        await messages_of(never(), patience=patience, seconds=0.01).read()


async def test_a_timeout_of_the_transport_is_none_of_the_server():
    async def broken():
        raise TimeoutError
        yield b""

    with pytest.raises(TimeoutError):
        await messages_of(broken()).read()


def test_memory_is_lent_up_to_the_budget_and_given_back():
    memory = MessageMemory(100)
    with memory.lend(60):
        with memory.lend(40):
            pass
        with pytest.raises(ResourceExhaustedError) as caught, memory.lend(41):
            pass
        assert caught.value.reason == "OVERLOADED"
    with memory.lend(60):
        pass


def test_a_message_larger_than_the_budget_is_taken_alone():
    memory = MessageMemory(100)
    with memory.lend(1000), pytest.raises(ResourceExhaustedError), memory.lend(1):
        pass
