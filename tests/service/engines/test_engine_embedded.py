# SPDX-License-Identifier: Apache-2.0
"""Running families in-process."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from service.core.errors import DeadlineExceededError, UnavailableError
from service.core.family import GraphRole
from service.core.ports import GuidanceHandle, SilentTelemetry
from service.engines import embedded, sessions
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import Run
from tests.helpers.tiny_repository import write_tiny_repository


class RunCounter(SilentTelemetry):
    def __init__(self):
        self.runs = []

    def graph_run(self, role):
        self.runs.append(role)


@pytest.fixture
def telemetry():
    return RunCounter()


@pytest.fixture
async def engine(tmp_path, telemetry):
    engine = EmbeddedEngine(tmp_path, telemetry=telemetry, threads=1, workers=1)
    yield engine
    await engine.close()


@pytest.fixture
async def family(tmp_path, engine):
    name = write_tiny_repository(tmp_path)
    await engine.load(name)
    return name


def photograph(seed=0, batch=1):
    return np.random.default_rng(seed).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)


def planes(batch=1):
    values = np.zeros((batch, 2, 32, 32), np.float32)
    values[:, 1, 8:20, 4:24] = 1
    values[:, 0] = 1 - values[:, 1]
    return values


def prototypes(seed=1, batch=1, ways=1):
    return np.random.default_rng(seed).normal(size=(batch, 1 + ways, 8)).astype(np.float32)


async def test_the_support_encoder_equals_its_graphs_to_the_last_bit(engine, family, telemetry):
    image = photograph()
    together = await engine.run(
        family, GraphRole.SUPPORT_ENCODER, {"image": image, "planes": planes()}
    )
    features = await engine.run(family, GraphRole.FEATURES, {"image": image})
    apart = await engine.run(family, GraphRole.GUIDE, {**features, "planes": planes()})
    assert together.keys() == apart.keys() == {"prototypes", "weights"}
    for name, values in apart.items():
        assert together[name].tobytes() == values.tobytes()
    assert telemetry.runs == [GraphRole.FEATURES, GraphRole.GUIDE] * 2


async def test_the_query_decoder_equals_its_graphs_to_the_last_bit(engine, family, telemetry):
    image = photograph()
    guidance = {"prototypes": prototypes(ways=3)}
    together = await engine.run(family, GraphRole.QUERY_DECODER, {"image": image, **guidance})
    features = await engine.run(family, GraphRole.FEATURES, {"image": image})
    apart = await engine.run(family, GraphRole.DECODE, {**features, **guidance})
    assert together.keys() == apart.keys() == {"logits"}
    assert together["logits"].shape == (1, 4, 1, 4, 4)
    assert together["logits"].tobytes() == apart["logits"].tobytes()
    assert telemetry.runs == [GraphRole.FEATURES, GraphRole.DECODE] * 2


async def test_query_features_stand_between_features_and_decode(engine, tmp_path, telemetry):
    family = write_tiny_repository(tmp_path, query_features=True)
    await engine.load(family)
    image, guidance = photograph(), {"prototypes": prototypes()}
    together = await engine.run(family, GraphRole.QUERY_DECODER, {"image": image, **guidance})
    tensors = await engine.run(family, GraphRole.FEATURES, {"image": image})
    tensors = await engine.run(family, GraphRole.QUERY_FEATURES, tensors)
    apart = await engine.run(family, GraphRole.DECODE, {**tensors, **guidance})
    assert together["logits"].tobytes() == apart["logits"].tobytes()
    assert telemetry.runs == [GraphRole.FEATURES, GraphRole.QUERY_FEATURES, GraphRole.DECODE] * 2


async def test_a_mask_follows_the_colours_of_the_support(engine, family):
    support = np.full((1, 32, 32, 3), (20, 180, 40), np.uint8)
    support[:, 8:24, 8:24] = (210, 30, 20)
    annotation = np.zeros((1, 2, 32, 32), np.float32)
    annotation[:, 1, 8:24, 8:24] = 1
    annotation[:, 0] = 1 - annotation[:, 1]
    query = np.full((1, 32, 32, 3), (30, 170, 60), np.uint8)
    query[:, 0:16, 16:32] = (200, 40, 30)
    guidance = await engine.run(
        family, GraphRole.SUPPORT_ENCODER, {"image": support, "planes": annotation}
    )
    assert guidance.pop("weights").tolist() == [[1, 1]]
    outputs = await engine.run(family, GraphRole.QUERY_DECODER, {"image": query, **guidance})
    assert outputs["logits"][0, :, 0].argmax(0).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


async def test_a_batch_equals_its_members(engine, family):
    images, guidance = photograph(batch=3), prototypes(batch=3)
    batched = await engine.run(
        family, GraphRole.QUERY_DECODER, {"image": images, "prototypes": guidance}
    )
    for index in range(3):
        one = slice(index, index + 1)
        alone = await engine.run(
            family, GraphRole.QUERY_DECODER, {"image": images[one], "prototypes": guidance[one]}
        )
        np.testing.assert_allclose(batched["logits"][one], alone["logits"], atol=1e-5)


async def test_arrays_of_any_layout_are_understood(engine, family):
    image = photograph()
    expected = await engine.run(family, GraphRole.FEATURES, {"image": image})
    strided = np.asfortranarray(image)
    assert not strided.flags.c_contiguous
    got = await engine.run(family, GraphRole.FEATURES, {"image": strided})
    assert got["features"].tobytes() == expected["features"].tobytes()


@pytest.mark.parametrize(
    ("inputs", "hint"),
    [
        ({}, r"takes \['image'\], not \[\]"),
        ({"image": photograph(), "planes": planes()}, "takes"),
        ({"image": photograph().astype(np.float32)}, "must be uint8, not float32"),
        ({"image": photograph()[:, :16]}, r"must be \[batch, 32, 32, 3\], not \[1, 16, 32, 3\]"),
        ({"image": photograph()[0]}, r"must be \[batch, 32, 32, 3\]"),
        ({"image": photograph(batch=9)}, "one batch of 1 to 8"),
        ({"image": photograph(batch=1)[:0]}, "one batch of 1 to 8"),
    ],
)
async def test_wrong_inputs_are_a_value_error(engine, family, inputs, hint):
    with pytest.raises(ValueError, match=hint):
        await engine.run(family, GraphRole.FEATURES, inputs)


async def test_inputs_of_unequal_batch_are_a_value_error(engine, family):
    inputs = {"image": photograph(batch=2), "prototypes": prototypes(batch=1)}
    with pytest.raises(ValueError, match=r"one batch of 1 to 8, not \[1, 2\]"):
        await engine.run(family, GraphRole.QUERY_DECODER, inputs)


async def test_a_role_that_the_family_lacks_is_a_value_error(engine, family):
    with pytest.raises(ValueError, match="has no merge"):
        await engine.run(family, GraphRole.MERGE, {})


async def test_a_graph_that_fails_is_unavailable_and_leaks_no_text(engine, tmp_path, telemetry):
    family = write_tiny_repository(tmp_path, stack=True)
    await engine.load(family)
    features = await engine.run(family, GraphRole.FEATURES, {"image": photograph()})
    inputs = {
        **features,
        "prototypes": np.ones((1, 2, 2, 8), np.float32),
        "validity": np.ones((1, 3), np.float32),
    }
    with pytest.raises(UnavailableError) as caught:
        await engine.run(family, GraphRole.DECODE, inputs)
    assert caught.value.reason == "ENGINE_FAILED"
    assert caught.value.message == f"The engine failed to run {family}_decode."
    assert telemetry.runs == [GraphRole.FEATURES]


async def test_many_runs_at_once_do_not_mix(tmp_path, telemetry):
    engine = EmbeddedEngine(tmp_path, telemetry=telemetry, threads=1, workers=3)
    family = write_tiny_repository(tmp_path)
    await engine.load(family)
    images = [photograph(seed) for seed in range(24)]
    at_once = await asyncio.gather(
        *(engine.run(family, GraphRole.FEATURES, {"image": image}) for image in images)
    )
    for image, outputs in zip(images, at_once, strict=True):
        alone = await engine.run(family, GraphRole.FEATURES, {"image": image})
        assert outputs["features"].tobytes() == alone["features"].tobytes()
    assert len(telemetry.runs) == 48
    await engine.close()


async def test_runs_that_fill_the_cores_take_a_thread_each(tmp_path, telemetry, monkeypatch):
    monkeypatch.setattr(sessions, "core_count", lambda: 3)
    used = []
    execute = Run.execute

    def noted(self, role, session, outputs, feeds):
        used.append(session.get_session_options().intra_op_num_threads)
        return execute(self, role, session, outputs, feeds)

    monkeypatch.setattr(Run, "execute", noted)
    monkeypatch.setattr(embedded, "core_count", lambda: 3)
    engine = EmbeddedEngine(tmp_path, telemetry=telemetry)
    family = write_tiny_repository(tmp_path)
    await engine.load(family)
    used.clear()
    image = {"image": photograph()}
    alone = await engine.run(family, GraphRole.FEATURES, image)
    assert used == [3]
    at_once = await asyncio.gather(
        *(engine.run(family, GraphRole.FEATURES, image) for _ in range(9))
    )
    # Nine were under way when the first began; the last two find the cores half empty.
    assert used[1:8] == [1] * 7
    for outputs in at_once:
        assert np.array_equal(outputs["features"], alone["features"])
    await engine.close()


async def test_guidance_behind_a_handle_equals_guidance_that_is_sent(engine, family):
    guidance = prototypes(ways=2)
    expected = await engine.run(
        family, GraphRole.QUERY_DECODER, {"image": photograph(), "prototypes": guidance}
    )
    handle = await engine.put_guidance(family, {"prototypes": guidance})
    assert (handle.family, handle.nbytes) == (family, guidance.nbytes)
    # The engine must not see what the caller does with its own array later.
    guidance[:] = 0
    got = await engine.run(
        family, GraphRole.QUERY_DECODER, {"image": photograph()}, guidance=handle
    )
    assert got["logits"].tobytes() == expected["logits"].tobytes()


async def test_one_handle_serves_a_batch_of_queries(engine, family):
    handle = await engine.put_guidance(family, {"prototypes": prototypes()})
    images = photograph(batch=2)
    both = await engine.run(family, GraphRole.QUERY_DECODER, {"image": images}, guidance=handle)
    last = await engine.run(family, GraphRole.QUERY_DECODER, {"image": images[1:]}, guidance=handle)
    np.testing.assert_allclose(both["logits"][1:], last["logits"], atol=1e-5)


async def test_read_only_guidance_is_kept_without_a_copy(engine, family):
    guidance = prototypes()
    guidance.setflags(write=False)
    before = engine.guidance_bytes
    handle = await engine.put_guidance(family, {"prototypes": guidance})
    assert engine.guidance_bytes == before + guidance.nbytes
    await engine.drop(handle)
    assert engine.guidance_bytes == before


async def test_dropped_guidance_must_be_put_again(engine, family):
    handle = await engine.put_guidance(family, {"prototypes": prototypes()})
    await engine.drop(handle)
    await engine.drop(handle)
    with pytest.raises(UnavailableError) as caught:
        await engine.run(family, GraphRole.QUERY_DECODER, {"image": photograph()}, guidance=handle)
    assert (caught.value.reason, caught.value.retry_after) == ("GUIDANCE_DROPPED", 0)


async def test_handles_are_never_reused(engine, family):
    first = await engine.put_guidance(family, {"prototypes": prototypes()})
    await engine.drop(first)
    second = await engine.put_guidance(family, {"prototypes": prototypes()})
    assert first.key != second.key


async def test_guidance_of_another_family_is_a_value_error(engine, family):
    handle = GuidanceHandle("other-00000000", "other-00000000/1", 0)
    with pytest.raises(ValueError, match="not of family"):
        await engine.run(family, GraphRole.QUERY_DECODER, {"image": photograph()}, guidance=handle)


@pytest.mark.parametrize(
    ("tensors", "hint"),
    [
        ({"weights": np.ones((1, 2), np.float32)}, "takes no tensor weights"),
        ({"prototypes": prototypes(batch=2)}, "batch 1, not 2"),
        ({"prototypes": prototypes().astype(np.float64)}, "must be float32"),
    ],
)
async def test_guidance_is_checked_when_it_is_put(engine, family, tensors, hint):
    with pytest.raises(ValueError, match=hint):
        await engine.put_guidance(family, tensors)


async def test_a_family_that_is_not_loaded_is_unavailable(engine):
    for attempt in (
        engine.run("tiny-00000000", GraphRole.FEATURES, {"image": photograph()}),
        engine.put_guidance("tiny-00000000", {}),
    ):
        with pytest.raises(UnavailableError) as caught:
            await attempt
        assert caught.value.reason == "FAMILY_NOT_LOADED"


async def test_unload_and_reload(engine, family):
    handle = await engine.put_guidance(family, {"prototypes": prototypes()})
    expected = await engine.run(family, GraphRole.FEATURES, {"image": photograph()})
    await engine.unload(family)
    await engine.unload(family)
    assert engine.loaded == frozenset()
    assert engine.guidance_bytes == 0
    with pytest.raises(UnavailableError):
        await engine.run(family, GraphRole.FEATURES, {"image": photograph()})
    await engine.load(family)
    await engine.load(family)
    assert engine.loaded == {family}
    again = await engine.run(family, GraphRole.FEATURES, {"image": photograph()})
    assert again["features"].tobytes() == expected["features"].tobytes()
    with pytest.raises(UnavailableError) as caught:
        await engine.run(family, GraphRole.QUERY_DECODER, {"image": photograph()}, guidance=handle)
    assert caught.value.reason == "GUIDANCE_DROPPED"


async def test_two_families_stand_side_by_side(tmp_path, engine, family):
    other = write_tiny_repository(tmp_path, seed=3)
    assert other != family
    handle = await engine.put_guidance(family, {"prototypes": prototypes()})
    query = {"image": photograph()}
    before = await engine.run(family, GraphRole.QUERY_DECODER, query, guidance=handle)
    running, _ = await asyncio.gather(
        asyncio.gather(
            *(
                engine.run(family, GraphRole.QUERY_DECODER, query, guidance=handle)
                for _ in range(20)
            )
        ),
        engine.load(other),
    )
    assert engine.loaded == {family, other}
    assert all(outputs["logits"].tobytes() == before["logits"].tobytes() for outputs in running)
    newer = await engine.run(other, GraphRole.QUERY_DECODER, {**query, "prototypes": prototypes()})
    assert not np.allclose(newer["logits"], before["logits"])
    await engine.unload(other)
    after = await engine.run(family, GraphRole.QUERY_DECODER, query, guidance=handle)
    assert after["logits"].tobytes() == before["logits"].tobytes()


async def test_a_stacked_binary_family_runs(tmp_path, engine):
    family = write_tiny_repository(tmp_path, binary=True, stack=True)
    await engine.load(family)
    shot = await engine.run(
        family, GraphRole.SUPPORT_ENCODER, {"image": photograph(), "planes": planes()}
    )
    stacked = {name: np.stack([values, 0 * values], axis=1) for name, values in shot.items()}
    outputs = await engine.run(
        family,
        GraphRole.QUERY_DECODER,
        {"image": photograph(), **stacked, "validity": np.array([[1, 0]], np.float32)},
    )
    assert outputs["logits"].shape == (1, 1, 2, 4, 4)
    assert (outputs["logits"][:, :, 1] == -40).all()


async def test_a_passed_deadline_refuses_before_the_run(engine, family, telemetry):
    with pytest.raises(DeadlineExceededError) as caught:
        await engine.run(
            family, GraphRole.FEATURES, {"image": photograph()}, deadline=time.monotonic() - 0.001
        )
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert telemetry.runs == []


async def test_a_deadline_in_the_future_changes_nothing(engine, family):
    expected = await engine.run(family, GraphRole.FEATURES, {"image": photograph()})
    outputs = await engine.run(
        family, GraphRole.FEATURES, {"image": photograph()}, deadline=time.monotonic() + 60
    )
    assert outputs["features"].tobytes() == expected["features"].tobytes()


async def test_a_closed_engine_reads_and_loads_no_more(tmp_path):
    name = write_tiny_repository(tmp_path)
    engine = EmbeddedEngine(tmp_path, telemetry=SilentTelemetry(), threads=1)
    await engine.close()
    for work in (engine.discover, lambda: engine.load(name)):
        with pytest.raises(UnavailableError) as caught:
            await work()
        assert caught.value.reason == "ENGINE_CLOSED"


async def test_an_engine_that_is_closed_while_it_reads_loads_nothing(tmp_path, monkeypatch):
    name = write_tiny_repository(tmp_path)
    engine = EmbeddedEngine(tmp_path, telemetry=SilentTelemetry(), threads=1)
    reading, go_on = threading.Event(), threading.Event()
    read = embedded.read_repository

    def held(repository):
        reading.set()
        go_on.wait(5)
        return read(repository)

    monkeypatch.setattr(embedded, "read_repository", held)
    loading = asyncio.create_task(engine.load(name))
    await asyncio.to_thread(reading.wait, 5)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(UnavailableError):
        await loading
    await closing
    assert not engine.loaded


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
async def test_all_threads_of_an_engine_are_as_nice_as_it_says(tmp_path):
    def threads():
        return {int(name) for name in os.listdir("/proc/self/task")}

    name = write_tiny_repository(tmp_path)
    before, own = threads(), os.getpriority(os.PRIO_PROCESS, 0)
    engine = EmbeddedEngine(tmp_path, telemetry=SilentTelemetry(), threads=2, niceness=3)
    try:
        await engine.load(name)
        await engine.run(name, GraphRole.FEATURES, {"image": photograph()})
        new = threads() - before
        assert len(new) >= 3, "the reader, a worker, and one of ONNX Runtime at least"
        assert {os.getpriority(os.PRIO_PROCESS, one) for one in new} == {min(19, own + 3)}
    finally:
        await engine.close()


def test_a_program_that_ends_while_a_family_loads_ends_cleanly(tmp_path):
    name = write_tiny_repository(tmp_path)
    program = f"""
import asyncio, time
from pathlib import Path
from service.core.ports import SilentTelemetry
from service.engines import embedded

load = embedded.load_family

def slow(*given):
    ends = time.monotonic() + 1.0
    while time.monotonic() < ends:
        load(*given)

async def main():
    embedded.load_family = slow
    engine = embedded.EmbeddedEngine(Path({str(tmp_path)!r}), telemetry=SilentTelemetry())
    loading = asyncio.create_task(engine.load({name!r}))
    await asyncio.sleep(0.3)
    loading.cancel()

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
