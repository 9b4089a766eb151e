# SPDX-License-Identifier: Apache-2.0
"""Task guidance in memory that the gateway shares with Triton."""

import asyncio
import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from service.core.errors import DeadlineExceededError, UnavailableError
from service.core.family import GraphRole
from tests.conftest import ROOT
from tests.helpers.tiny_repository import write_tiny_repository
from tests.helpers.triton import Proxy, shared_memory_files
from tests.service.engines.triton_samples import (
    photograph,
    stacked,
    triton_engine,
)

#: Guidance of 16 shots and 8 ways, some kilobytes: large for these tests.
LARGE = {"shots": 16, "ways": 8}


@pytest.fixture
def family(tmp_path):
    return write_tiny_repository(tmp_path, stack=True)


@pytest.fixture(autouse=True)
def nothing_is_left_in_shared_memory():
    before = shared_memory_files()
    yield
    assert shared_memory_files() == before


async def query(engine, family, handle, batch=1, **more):
    features = await engine.run(family, GraphRole.FEATURES, {"image": photograph(batch=batch)})
    return await engine.run(family, GraphRole.DECODE, features, guidance=handle, **more)


async def given(engine, family, guidance, batch=1):
    """The same answer with the guidance as plain inputs."""
    features = await engine.run(family, GraphRole.FEATURES, {"image": photograph(batch=batch)})
    repeated = {name: np.repeat(values, batch, axis=0) for name, values in guidance.items()}
    return await engine.run(family, GraphRole.DECODE, {**features, **repeated})


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
async def test_guidance_behind_a_handle_answers_as_plain_inputs_do(
    tmp_path, serve_triton, family, shared_memory
):
    triton = serve_triton(tmp_path)
    async with triton_engine(triton, shared_bytes=1, shared_memory=shared_memory) as engine:
        await engine.load(family)
        guidance = stacked(**LARGE)
        handle = await engine.put_guidance(family, guidance)
        assert bool(shared_memory_files()) == (shared_memory == "auto")
        assert handle.family == family
        assert engine.guidance_bytes == handle.nbytes
        assert handle.nbytes >= sum(values.nbytes for values in guidance.values())
        for batch in (1, 3):
            answer = await query(engine, family, handle, batch)
            expected = await given(engine, family, guidance, batch)
            assert answer["logits"].tobytes() == expected["logits"].tobytes()
        decoded = await engine.run(
            family, GraphRole.QUERY_DECODER, {"image": photograph()}, guidance=handle
        )
        expected = await query(engine, family, handle)
        assert decoded["logits"].tobytes() == expected["logits"].tobytes()
        await engine.drop(handle)
        await engine.drop(handle)
        assert not shared_memory_files()
        assert engine.guidance_bytes == 0
        with pytest.raises(UnavailableError) as caught:
            await query(engine, family, handle)
        assert caught.value.reason == "GUIDANCE_DROPPED"


async def test_shared_guidance_does_not_cross_the_wire(tmp_path, serve_triton, family):
    triton = serve_triton(tmp_path)
    sizes = {}
    for mode in ("auto", "off"):
        async with (
            Proxy(triton.grpc_address) as wire,
            triton_engine(wire.address, shared_bytes=1, shared_memory=mode) as engine,
        ):
            await engine.load(family)
            handle = await engine.put_guidance(family, stacked(**LARGE))
            features = await engine.run(family, GraphRole.FEATURES, {"image": photograph()})
            await engine.run(family, GraphRole.DECODE, features, guidance=handle)
            before = wire.sent
            await engine.run(family, GraphRole.DECODE, features, guidance=handle)
            sizes[mode] = wire.sent - before
    assert sizes["off"] - sizes["auto"] > 0.9 * handle.nbytes


async def test_small_guidance_goes_with_each_request(tmp_path, serve_triton, family):
    async with triton_engine(serve_triton(tmp_path)) as engine:
        await engine.load(family)
        handle = await engine.put_guidance(family, stacked())
        assert not shared_memory_files()
        await query(engine, family, handle)


async def test_triton_started_anew_is_given_the_region_again(tmp_path, serve_triton, family):
    triton = serve_triton(tmp_path)
    async with triton_engine(triton, shared_bytes=1) as engine:
        await engine.load(family)
        handle = await engine.put_guidance(family, stacked(**LARGE))
        before = await query(engine, family, handle)
        triton.kill()
        triton.start()
        after = await _patiently(engine, family, handle)
        assert after["logits"].tobytes() == before["logits"].tobytes()


async def _patiently(engine, family, handle):
    """Queries until Triton is back; the engine says when to try again."""
    deadline = time.monotonic() + 10.0
    while True:
        try:
            return await query(engine, family, handle)
        except UnavailableError as error:
            assert time.monotonic() < deadline
            await asyncio.sleep(error.retry_after)


async def test_a_server_that_does_not_see_the_memory_is_sent_bytes(tmp_path, serve_triton, family):
    async with triton_engine(serve_triton(tmp_path), shared_bytes=1) as engine:
        await engine.load(family)
        guidance = stacked(**LARGE)
        handle = await engine.put_guidance(family, guidance)
        (region,) = shared_memory_files()
        # As if the server were in a container with shared memory of its own.
        os.rename(f"/dev/shm/{region}", f"/dev/shm/{region}-elsewhere")
        answer = await query(engine, family, handle)
        expected = await given(engine, family, guidance)
        assert answer["logits"].tobytes() == expected["logits"].tobytes()
        os.rename(f"/dev/shm/{region}-elsewhere", f"/dev/shm/{region}")


async def test_where_shared_memory_is_full_guidance_goes_with_requests(
    tmp_path, serve_triton, family, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    async with triton_engine(serve_triton(tmp_path), shared_bytes=1) as engine:
        await engine.load(family)
        handle = await engine.put_guidance(family, stacked(**LARGE))
        assert not shared_memory_files()
        await query(engine, family, handle)


async def test_a_run_keeps_guidance_that_is_dropped_meanwhile(tmp_path, serve_triton):
    family = write_tiny_repository(tmp_path, stack=True, slow_decode=60_000)
    async with triton_engine(serve_triton(tmp_path), shared_bytes=1) as engine:
        await engine.load(family)
        handle = await engine.put_guidance(family, stacked(**LARGE))
        expected = await query(engine, family, handle)
        running = asyncio.create_task(query(engine, family, handle))
        await asyncio.sleep(0.1)
        await engine.drop(handle)
        assert (await running)["logits"].tobytes() == expected["logits"].tobytes()
        assert not shared_memory_files()


async def test_unloading_a_family_drops_its_guidance(tmp_path, serve_triton, family):
    async with triton_engine(serve_triton(tmp_path), shared_bytes=1) as engine:
        await engine.load(family)
        await engine.put_guidance(family, stacked(**LARGE))
        assert shared_memory_files()
        await engine.unload(family)
        assert not shared_memory_files()


async def test_guidance_is_checked_when_it_is_put(tmp_path, serve_triton, family):
    async with triton_engine(serve_triton(tmp_path)) as engine:
        await engine.load(family)
        with pytest.raises(ValueError, match="takes no tensor"):
            await engine.put_guidance(family, {"nothing": np.zeros((1, 1), np.float32)})
        with pytest.raises(ValueError, match="batch 1"):
            await engine.put_guidance(family, stacked(batch=2))
        with pytest.raises(UnavailableError):
            await engine.put_guidance("tiny-00000000", stacked())
        handle = await engine.put_guidance(family, stacked())
        other = write_tiny_repository(tmp_path, "other", stack=True)
        await engine.load(other)
        with pytest.raises(ValueError, match="is not of family"):
            await query(engine, other, handle)


_HOLDER = """
import asyncio, sys
from tests.service.engines.triton_samples import stacked, triton_engine

async def main(address, family):
    async with triton_engine(address, shared_bytes=1) as engine:
        await engine.load(family)
        handle = await engine.put_guidance(family, stacked(shots=16, ways=8))
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_process_that_ends_in_any_way_leaves_nothing_behind(tmp_path, serve_triton, family, end):
    triton = serve_triton(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, triton.grpc_address, family],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert holder.stdout.readline() == b"ready\n"
        mine = f"fewseg-{holder.pid}-"
        assert [name for name in os.listdir("/dev/shm") if name.startswith(mine)]
        getattr(holder, end)()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    deadline = time.monotonic() + 5.0
    while [name for name in os.listdir("/dev/shm") if name.startswith(mine)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_a_gateway_that_was_killed_leaves_no_memory_with_triton(
    tmp_path, serve_triton, family
):
    triton = serve_triton(tmp_path)
    async with triton_engine(triton, shared_bytes=1) as engine:
        await engine.load(family)
        handle = await engine.put_guidance(family, stacked(**LARGE))
        await query(engine, family, handle)
        (region,) = shared_memory_files()
        os.rename(f"/dev/shm/{region}", f"/dev/shm/{region}-kept")
        async with triton_engine(triton) as successor:
            with InferenceServerClient(triton.grpc_address) as client:
                assert region in client.get_system_shared_memory_status().regions
                await successor.discover()
                assert region not in client.get_system_shared_memory_status().regions
        os.rename(f"/dev/shm/{region}-kept", f"/dev/shm/{region}")


async def test_a_region_that_triton_still_reads_is_unmapped_later(tmp_path, serve_triton):
    family = write_tiny_repository(tmp_path, stack=True, slow_decode=1_000_000)
    triton = serve_triton(tmp_path)
    async with triton_engine(triton, shared_bytes=1) as engine:
        await engine.load(family)
        handle = await engine.put_guidance(family, stacked(**LARGE))
        features = await engine.run(family, GraphRole.FEATURES, {"image": photograph()})
        with pytest.raises(DeadlineExceededError):
            await engine.run(
                family,
                GraphRole.DECODE,
                features,
                guidance=handle,
                deadline=time.monotonic() + 0.5,
            )
        await engine.drop(handle)
        assert not shared_memory_files()
        with InferenceServerClient(triton.grpc_address) as client:
            assert client.get_system_shared_memory_status().regions
            deadline = time.monotonic() + 10.0
            while client.get_system_shared_memory_status().regions:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
