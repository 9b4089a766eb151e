import asyncio
import inspect
import math
import time

import numpy as np
import pytest
from fake_fewseg_server import status

from fewseg import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Points,
    SegmentResult,
    Support,
    Unavailable,
)


@pytest.fixture
async def aclient(server):
    async with AsyncClient(server.target, timeout=10) as opened:
        yield opened


def test_both_clients_have_the_same_surface():
    def surface(kind):
        members = {n: m for n, m in vars(kind).items() if not n.startswith("_")}
        return {
            name: list(inspect.signature(member).parameters) for name, member in members.items()
        }

    asynchronous = surface(AsyncClient)
    assert asynchronous.pop("connect") == ["self"]
    assert asynchronous == surface(Client)
    parameters = inspect.signature(Client).parameters
    assert list(inspect.signature(AsyncClient).parameters) == list(parameters)


async def test_a_task_lives_through_all_its_calls(aclient, server, photo, coin):
    task = await aclient.register(["coin"], [Support(photo, coin, id="a")], task_id="coins")
    task = await aclient.annotate(task, "a", Points([(3, 4)], "coin"), extend=True)
    task = await aclient.remove_support(task, "a")
    assert (await aclient.get_task("coins")).name == task.name
    assert [listed.id async for listed in aclient.tasks(page_size=1)] == ["coins"]

    result = await aclient.segment(task, photo, format="rle")
    assert result.mask[:, :20].all()
    assert not result.mask[:, 20:].any()

    await aclient.delete_task(task)
    with pytest.raises(NotFound):
        await aclient.get_task(task)


async def test_supports_stream_from_either_kind_of_iterable(aclient, photo, coin):
    task = await aclient.register(["coin"], [Support(photo, coin)], task_id="coins")
    sent = []

    async def supports():
        for _ in range(5):
            await asyncio.sleep(0)
            yield Support(photo, coin)

    assert (await aclient.add_supports(task, supports(), progress=sent.append)).support_count == 6
    assert (await aclient.add_supports(task, [Support(photo, coin)])).support_count == 7
    assert sent == [1, 2, 3, 4, 5]


async def test_errors_of_added_supports_come_from_either_side(aclient, photo, coin):
    task = await aclient.register(["coin"], [Support(photo, coin)], task_id="coins")

    with pytest.raises(ValueError, match="uint8") as caught:
        await aclient.add_supports(task, [Support(photo.astype(float), coin)])
    assert caught.value.__notes__ == ["supports[0]"]
    for _ in range(20):  # the server's words must win whichever write meets the end of the call
        refused = (Support(photo, coin, id="refused" if n == 3 else "") for n in range(10_000))
        with pytest.raises(InvalidArgument):
            await aclient.add_supports(task, refused)


async def test_a_stream_answers_in_order_and_keeps_errors_to_their_images(aclient, server, photo):
    server.bad_frames = {2}
    images = [photo, "/nowhere.png", photo, photo[:7], photo.astype(float)]

    answers = [a async for a in aclient.segment_stream("coins", images, window=2)]

    assert [type(a) for a in answers] == [
        SegmentResult, InvalidArgument, InvalidArgument, SegmentResult, InvalidArgument,
    ]  # fmt: skip
    assert answers[3].mask.shape == (7, 40)


async def test_no_more_than_the_window_is_without_an_answer(aclient, photo):
    read, count = [], 0

    async def images():
        for number in range(40):
            read.append(number)
            yield photo

    async for _ in aclient.segment_stream("coins", images(), window=3):
        count += 1
        await asyncio.sleep(0.002)
        assert len(read) <= count + 3 + 1
    assert count == len(read) == 40


async def test_an_error_of_the_images_reaches_the_caller_after_the_answers(aclient, photo):
    async def images():
        yield photo
        raise RuntimeError("the camera is gone")

    stream = aclient.segment_stream("coins", images())
    assert isinstance(await anext(stream), SegmentResult)
    with pytest.raises(RuntimeError, match="camera"):
        await anext(stream)


async def test_no_time_at_all_is_not_the_default_time(aclient, server, photo):
    with pytest.raises(DeadlineExceeded):
        await aclient.segment("coins", photo, timeout=0)
    assert not server.requests["Segment"]


async def test_a_call_may_have_no_deadline_though_its_client_has_one(aclient, server):
    await aclient.refresh_models(timeout=math.inf)
    assert server.remaining["RefreshModels"][0] > 1e6


async def test_a_stream_that_is_left_early_stops_reading(aclient, photo):
    read = []

    async def images():
        while True:
            read.append(None)
            yield photo

    stream = aclient.segment_stream("coins", images(), window=2)
    await anext(stream)
    await stream.aclose()
    seen = len(read)
    await asyncio.sleep(0.05)
    assert len(read) == seen


async def test_an_error_of_the_whole_stream_is_raised(aclient, server, photo):
    server.failures["SegmentStream"] = [status("NOT_FOUND", reason="TASK_NOT_FOUND")]
    with pytest.raises(NotFound):
        await aclient.segment_many("coins", [photo] * 30)


async def test_many_images_give_all_results_or_the_first_error(aclient, server, photo):
    assert len(await aclient.segment_many("coins", [photo] * 3)) == 3
    server.bad_frames = {1}
    with pytest.raises(InvalidArgument) as caught:
        await aclient.segment_many("coins", [photo] * 3)
    assert caught.value.__notes__ == ["images[1]"]


async def test_an_unavailable_server_is_tried_again(aclient, server, photo):
    server.failures["Segment"] = [status("UNAVAILABLE")] * 2
    await aclient.segment("coins", photo)
    assert len(server.requests["Segment"]) == 3

    server.failures["DeleteTask"] = [status("UNAVAILABLE")]
    with pytest.raises(Unavailable):
        await aclient.delete_task("coins")


async def test_calls_run_side_by_side(aclient):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    started = time.monotonic()
    results = await asyncio.gather(*(aclient.segment("coins", noise) for _ in range(8)))
    assert len(results) == 8
    assert time.monotonic() - started < 5


async def test_models_and_limits_are_told(aclient):
    assert [m.alias for m in await aclient.models()] == ["compact", "panet"]
    assert (await aclient.refresh_models()).problems == ("broken-1 lacks decode",)
    assert (await aclient.server_info()).version == "0.1.0"


async def test_a_closed_client_says_so(server):
    client = AsyncClient(server.target)
    await client.server_info()
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.server_info()
