# SPDX-License-Identifier: Apache-2.0
"""Families in a real Triton."""

import asyncio
import time

import numpy as np
import pytest

from service.core.errors import (
    DeadlineExceededError,
    RepositoryError,
    ResourceExhaustedError,
    UnavailableError,
)
from service.core.family import GraphRole
from service.engines.triton import TritonEngine
from tests.helpers.tiny_repository import write_tiny_repository
from tests.helpers.triton import batch_dynamically, states, statistics
from tests.service.engines.triton_samples import (
    TOLERANCE,
    VARIANTS,
    RunCounter,
    embedded_engine,
    photograph,
    planes,
    prototypes,
    run_all_roles,
    triton_engine,
)

#: Rounds of ``slow_decode`` that take a second or two: long beside everything that is tested on it.
A_SECOND = 300_000


async def test_discovery_finds_what_the_embedded_engine_finds_and_loads_nothing(
    tmp_path, serve_triton
):
    for alias, variant in VARIANTS.items():
        write_tiny_repository(tmp_path, alias, **variant)
    triton = serve_triton(tmp_path)
    async with embedded_engine(tmp_path) as embedded, triton_engine(triton) as engine:
        expected = await embedded.discover()
        found = await engine.discover()
        assert (found.families, found.problems) == (expected.families, ())
        assert len(found.families) == len(VARIANTS)
        assert "READY" not in states(triton).values()
        # The second time nothing has to be loaded to be known.
        assert await engine.discover() == found


async def test_models_of_others_are_left_alone(tmp_path, serve_triton):
    family = write_tiny_repository(tmp_path)
    (tmp_path / f"{family}_guide").rename(tmp_path / "resnet")
    config = (tmp_path / "resnet" / "config.pbtxt").read_text()
    (tmp_path / "resnet" / "config.pbtxt").write_text(
        config.replace(f'name: "{family}_guide"', 'name: "resnet"')
    )
    whole = write_tiny_repository(tmp_path, "whole")
    async with triton_engine(serve_triton(tmp_path)) as engine:
        found = await engine.discover()
        assert list(found.families) == [whole]
        assert len(found.problems) == 1
        assert f"{family}_guide/config.pbtxt" in found.problems[0]


async def test_a_family_with_wrong_parameters_is_named_and_the_others_are_found(
    tmp_path, serve_triton
):
    broken = write_tiny_repository(tmp_path, "broken")
    whole = write_tiny_repository(tmp_path, "whole")
    path = tmp_path / f"{broken}_guide" / "config.pbtxt"
    path.write_text(path.read_text().replace('"argmax"', '"dice"'))
    async with triton_engine(serve_triton(tmp_path)) as engine:
        found = await engine.discover()
    assert list(found.families) == [whole]
    assert len(found.problems) == 1
    assert f"{broken}_guide/config.pbtxt" in found.problems[0]
    assert "fewseg.decision" in found.problems[0]


async def test_a_family_that_lacks_a_model_is_incomplete(tmp_path, serve_triton):
    family = write_tiny_repository(tmp_path)
    (tmp_path / f"{family}_decode").rename(tmp_path / ".decode")
    async with triton_engine(serve_triton(tmp_path)) as engine:
        found = await engine.discover()
    assert found.families == {}
    assert found.problems == (
        f"{family}_decode/config.pbtxt: is missing, and fewseg.graphs names it.",
    )


@pytest.mark.parametrize("variant", VARIANTS)
async def test_every_graph_and_ensemble_answers_as_the_embedded_engine_does(
    tmp_path, serve_triton, variant
):
    name = write_tiny_repository(tmp_path, **VARIANTS[variant])
    ours, theirs = RunCounter(), RunCounter()
    async with (
        embedded_engine(tmp_path, ours) as embedded,
        triton_engine(serve_triton(tmp_path), telemetry=theirs) as engine,
    ):
        family = (await embedded.discover()).families[name]
        await embedded.load(name)
        await engine.load(name)
        for batch in (1, 3):
            expected = await run_all_roles(embedded, family, batch)
            answered = await run_all_roles(engine, family, batch)
            assert answered.keys() == expected.keys()
            for role, outputs in expected.items():
                assert answered[role].keys() == outputs.keys()
                for tensor, values in outputs.items():
                    assert answered[role][tensor].dtype == values.dtype
                    np.testing.assert_allclose(answered[role][tensor], values, **TOLERANCE)
    assert theirs.runs == ours.runs


async def test_loading_twice_is_loading_once(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    async with triton_engine(triton) as engine:
        await asyncio.gather(engine.load(name), engine.load(name))
        await engine.load(name)
        assert engine.loaded == {name}
        assert set(states(triton).values()) == {"READY"}


async def test_of_a_family_with_a_graph_that_does_not_load_nothing_stays_loaded(
    tmp_path, serve_triton
):
    name = write_tiny_repository(tmp_path)
    (tmp_path / f"{name}_decode" / "1" / "model.onnx").write_bytes(b"no graph")
    triton = serve_triton(tmp_path)
    async with triton_engine(triton) as engine:
        with pytest.raises(RepositoryError, match=f"{name}_decode/config.pbtxt: Triton cannot"):
            await engine.load(name)
        assert engine.loaded == frozenset()
    assert "READY" not in states(triton).values()


async def test_a_family_that_triton_does_not_hold_cannot_be_loaded(tmp_path, serve_triton):
    write_tiny_repository(tmp_path)
    async with triton_engine(serve_triton(tmp_path)) as engine:
        with pytest.raises(RepositoryError) as caught:
            await engine.load("tiny-00000000")
    assert caught.value.reason == "FAMILY_UNKNOWN"


async def test_an_unloaded_family_is_gone_from_triton_and_can_come_back(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    async with triton_engine(triton) as engine:
        await engine.load(name)
        await engine.unload(name)
        await engine.unload("nobody-00000000")
        assert "READY" not in states(triton).values()
        with pytest.raises(UnavailableError) as caught:
            await engine.run(name, GraphRole.FEATURES, {"image": photograph()})
        assert caught.value.reason == "FAMILY_NOT_LOADED"
        await engine.load(name)
        await engine.run(name, GraphRole.FEATURES, {"image": photograph()})


async def test_wrong_inputs_are_refused_before_they_travel(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    async with triton_engine(triton) as engine:
        await engine.load(name)
        with pytest.raises(ValueError, match="must be uint8"):
            await engine.run(name, GraphRole.FEATURES, {"image": photograph().astype(np.float32)})
        with pytest.raises(ValueError, match="takes"):
            await engine.run(name, GraphRole.GUIDE, {"planes": planes()})
        with pytest.raises(ValueError, match="batch of 1 to 8"):
            await engine.run(name, GraphRole.FEATURES, {"image": photograph(batch=9)})
        with pytest.raises(ValueError, match="has no query_features"):
            await engine.run(name, GraphRole.QUERY_FEATURES, {"features": photograph()})
    assert statistics(triton, f"{name}_features") == (0, 0)


async def slow_engine_inputs(engine, name, role=GraphRole.DECODE):
    """Loads a family and returns what its slow ``decode``, or the ensemble over it, takes."""
    await engine.load(name)
    if role is GraphRole.QUERY_DECODER:
        return {"image": photograph(), "prototypes": prototypes()}
    features = await engine.run(name, GraphRole.FEATURES, {"image": photograph()})
    return {**features, "prototypes": prototypes()}


async def test_a_deadline_ends_a_run_that_is_too_slow(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path, slow_decode=A_SECOND)
    async with triton_engine(serve_triton(tmp_path)) as engine:
        inputs = await slow_engine_inputs(engine, name)
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await engine.run(name, GraphRole.DECODE, inputs, deadline=started + 0.05)
        assert time.monotonic() - started < 0.3
        with pytest.raises(DeadlineExceededError):
            await engine.run(name, GraphRole.DECODE, inputs, deadline=started)


async def test_a_run_without_a_deadline_is_bounded_as_well(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path, slow_decode=A_SECOND)
    triton = serve_triton(tmp_path)
    async with triton_engine(triton) as patient:
        inputs = await slow_engine_inputs(patient, name)
    async with triton_engine(triton, run_seconds=0.1) as engine:
        await engine.load(name)
        with pytest.raises(UnavailableError) as caught:
            await engine.run(name, GraphRole.DECODE, inputs)
    assert caught.value.reason == "ENGINE_SLOW"
    assert caught.value.retry_after > 0


#: A graph called by itself, and as the last step of an ensemble.
CALLED = (GraphRole.DECODE, GraphRole.QUERY_DECODER)


@pytest.fixture
def one_at_a_time(tmp_path, serve_triton):
    """A family whose slow ``decode`` runs one request while others wait, and its Triton."""
    name = write_tiny_repository(tmp_path, slow_decode=A_SECOND)
    batch_dynamically(tmp_path, f"{name}_decode")
    return name, serve_triton(tmp_path)


@pytest.mark.parametrize("role", CALLED)
async def test_a_deadline_reaches_the_queue_of_triton(one_at_a_time, role):
    name, triton = one_at_a_time
    async with triton_engine(triton) as engine:
        inputs = await slow_engine_inputs(engine, name, role)
        first = asyncio.create_task(engine.run(name, role, inputs))
        await asyncio.sleep(0.1)
        with pytest.raises(DeadlineExceededError):
            await engine.run(name, role, inputs, deadline=time.monotonic() + 0.1)
        await first
        await asyncio.sleep(0.2)
    # The late one was taken out of the queue: nobody computed what nobody waits for.
    assert statistics(triton, f"{name}_decode") == (1, 1)


@pytest.mark.parametrize("role", CALLED)
async def test_cancelling_a_run_takes_it_out_of_the_queue_of_triton(one_at_a_time, role):
    name, triton = one_at_a_time
    async with triton_engine(triton) as engine:
        inputs = await slow_engine_inputs(engine, name, role)
        first = asyncio.create_task(engine.run(name, role, inputs))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(engine.run(name, role, inputs))
        await asyncio.sleep(0.1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await first
        await asyncio.sleep(0.2)
    assert statistics(triton, f"{name}_decode") == (1, 1)


async def test_a_full_queue_is_said_to_be_full(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path, slow_decode=A_SECOND)
    batch_dynamically(tmp_path, f"{name}_decode", max_queue_size=1)
    async with triton_engine(serve_triton(tmp_path)) as engine:
        inputs = await slow_engine_inputs(engine, name)
        runs = [asyncio.create_task(engine.run(name, GraphRole.DECODE, inputs)) for _ in range(8)]
        results = await asyncio.gather(*runs, return_exceptions=True)
    refused = [result for result in results if isinstance(result, ResourceExhaustedError)]
    answered = [result for result in results if isinstance(result, dict)]
    assert refused
    assert answered
    assert len(refused) + len(answered) == len(results)
    assert {error.reason for error in refused} == {"ENGINE_QUEUE_FULL"}


async def test_queries_of_different_tasks_share_an_execution(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path)
    decode = f"{name}_decode"
    batch_dynamically(tmp_path, decode, delay_microseconds=50_000)
    triton = serve_triton(tmp_path)
    async with triton_engine(triton) as engine:
        inputs = await slow_engine_inputs(engine, name)
        alone = [
            await engine.run(name, GraphRole.DECODE, {**inputs, "prototypes": prototypes(seed)})
            for seed in range(8)
        ]
        queries, executions = statistics(triton, decode)
        together = await asyncio.gather(
            *(
                engine.run(name, GraphRole.DECODE, {**inputs, "prototypes": prototypes(seed)})
                for seed in range(8)
            )
        )
        after = statistics(triton, decode)
    assert after[0] - queries == 8
    assert after[1] - executions < 8
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], **TOLERANCE)


async def test_without_model_control_what_is_loaded_is_served(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path, control="none")
    async with triton_engine(triton) as engine:
        await engine.load(name)
        await engine.run(name, GraphRole.FEATURES, {"image": photograph()})
        later = write_tiny_repository(tmp_path, "later")
        found = await engine.discover()
        assert list(found.families) == [name]
        assert len(found.problems) == 1
        assert later in found.problems[0]
        await engine.unload(name)
    assert states(triton)[f"{name}_features"] == "READY"


async def test_an_engine_that_may_not_control_models_leaves_them_as_they_are(
    tmp_path, serve_triton
):
    name = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    async with triton_engine(triton, model_control=False) as engine:
        found = await engine.discover()
        assert found.families == {}
        assert "--model-control-mode=explicit" in found.problems[0]
    async with triton_engine(triton) as other:
        await other.load(name)
        async with triton_engine(triton, model_control=False) as engine:
            await engine.load(name)
            await engine.run(name, GraphRole.FEATURES, {"image": photograph()})
            await engine.unload(name)
        await other.run(name, GraphRole.FEATURES, {"image": photograph()})


async def test_a_closed_engine_refuses_and_ends_what_runs(tmp_path, serve_triton):
    name = write_tiny_repository(tmp_path, slow_decode=A_SECOND)
    async with triton_engine(serve_triton(tmp_path)) as engine:
        inputs = await slow_engine_inputs(engine, name)
        running = asyncio.create_task(engine.run(name, GraphRole.DECODE, inputs))
        await asyncio.sleep(0.1)
        await engine.close()
        await engine.close()
        with pytest.raises(UnavailableError) as caught:
            await running
        assert caught.value.reason == "ENGINE_CLOSED"
        with pytest.raises(UnavailableError):
            await engine.discover()
        with pytest.raises(UnavailableError):
            await engine.run(name, GraphRole.DECODE, inputs)


@pytest.mark.parametrize("addresses", [[], ["a:1", "a:1"]])
def test_addresses_are_needed_and_differ(addresses):
    with pytest.raises(ValueError, match="different addresses"):
        TritonEngine(addresses, telemetry=RunCounter())
