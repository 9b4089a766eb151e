# SPDX-License-Identifier: Apache-2.0
"""What becomes of requests when something happens to Triton."""

import asyncio
import subprocess
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from service.core.calls import Call
from service.core.errors import DeadlineExceededError, UnavailableError
from service.core.family import GraphRole
from service.engines.triton_discovery import AWAY
from service.engines.triton_endpoint import Endpoint
from service.engines.triton_errors import TritonError
from service.engines.triton_options import TritonOptions
from tests.helpers.gateway import (
    CountingTelemetry,
    labels_of,
    query,
    red_query,
    red_registration,
    running_gateway,
)
from tests.helpers.tiny_repository import write_tiny_repository
from tests.helpers.triton import Proxy, kill_stub, states, statistics, unload_all
from tests.service.engines.triton_samples import photograph, prototypes, triton_engine

#: Small bounds, so that the tests do not wait for the patience that production needs.
QUICK = {"backoff_seconds": 0.05, "max_backoff_seconds": 0.4, "reload_seconds": 0.5}
_LATER = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture
def family(tmp_path):
    return write_tiny_repository(tmp_path)


async def features(engine, family, **more):
    return await engine.run(family, GraphRole.FEATURES, {"image": photograph()}, **more)


async def answered(attempt, seconds=10.0):
    """Tries until there is an answer, as a client does that is told when to come back."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except UnavailableError as error:
            if time.monotonic() > deadline or error.retry_after <= 0:
                raise
            await asyncio.sleep(min(error.retry_after, 0.2))


class Client:
    """Segments one image again and again, and keeps how it went.

    Attributes:
        masks: The mask by family; it must always be the same.
    """

    def __init__(self, gateway):
        self._gateway = gateway
        self.masks = {}
        self.answers = 0
        self.refusals = []
        self.slowest = 0.0
        self.stopped = False

    async def run(self):
        while not self.stopped:
            started = time.monotonic()
            try:
                answer = await self._gateway.segmenter.segment(query(red_query()), Call())
            except UnavailableError as error:
                self.refusals.append(error)
            else:
                expected = self.masks.setdefault(answer.family, labels_of(answer))
                assert np.array_equal(labels_of(answer), expected)
                self.answers += 1
            self.slowest = max(self.slowest, time.monotonic() - started)
            await asyncio.sleep(0.02)


async def test_triton_killed_and_started_again_under_load_costs_time_and_no_task(
    tmp_path, serve_triton, family
):
    triton = serve_triton(tmp_path)
    async with (
        triton_engine(triton, **QUICK) as engine,
        running_gateway(tmp_path, engine=engine, feature_bytes=1, guidance_bytes=1) as gateway,
    ):
        await gateway.tasks.register(red_registration(), Call())
        client = Client(gateway)
        load = [asyncio.create_task(client.run()) for _ in range(4)]
        await asyncio.sleep(0.3)
        triton.kill()
        before = client.answers
        await asyncio.sleep(0.5)
        assert not await gateway.catalog.ready()
        await asyncio.to_thread(triton.start)
        for _ in range(200):
            if client.answers >= before + 20:
                break
            await asyncio.sleep(0.05)
        client.stopped = True
        await asyncio.gather(*load)
        assert before > 0
        assert client.answers >= before + 20
        assert client.refusals
        assert all(error.retry_after > 0 for error in client.refusals)
        assert client.slowest < 5.0
        assert await gateway.catalog.ready()
        assert gateway._admission.in_flight == 0


async def test_a_model_that_somebody_unloads_is_loaded_again(tmp_path, serve_triton, family):
    triton = serve_triton(tmp_path)
    async with triton_engine(triton, **QUICK) as engine:
        await engine.load(family)
        before = await features(engine, family)
        unload_all(triton)
        after = await features(engine, family)
        assert after["features"].tobytes() == before["features"].tobytes()


async def test_a_model_that_cannot_come_back_is_said_to_be_missing_and_comes_back_later(
    tmp_path, serve_triton, family
):
    triton = serve_triton(tmp_path)
    async with triton_engine(triton, **QUICK) as engine:
        await engine.load(family)
        await features(engine, family)
        graph = tmp_path / f"{family}_features" / "1" / "model.onnx"
        content = graph.read_bytes()
        graph.write_bytes(b"no graph")
        unload_all(triton)
        with pytest.raises(UnavailableError) as caught:
            await features(engine, family)
        assert caught.value.reason == "MODEL_NOT_LOADED"
        assert caught.value.retry_after > 0
        graph.write_bytes(content)
        await answered(lambda: features(engine, family))


async def test_a_dead_stub_that_triton_calls_ready_is_noticed_and_loaded_anew(
    tmp_path, serve_triton, family
):
    triton = serve_triton(tmp_path)
    async with (
        triton_engine(triton, **QUICK) as engine,
        running_gateway(tmp_path, engine=engine) as gateway,
    ):
        assert await gateway.catalog.ready()
        kill_stub(triton, f"{family}_guide")
        assert states(triton)[f"{family}_guide"] == "READY"
        assert not await gateway.catalog.ready()
        deadline = time.monotonic() + 15.0
        while not await gateway.catalog.ready():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        await gateway.tasks.register(red_registration(), Call())


async def test_a_half_open_connection_is_noticed_in_bounded_time(tmp_path, serve_triton, family):
    triton = serve_triton(tmp_path)
    async with (
        Proxy(triton.grpc_address) as wire,
        triton_engine(
            wire.address, keepalive_seconds=1.0, keepalive_timeout_seconds=0.5, **QUICK
        ) as engine,
    ):
        await engine.load(family)
        await features(engine, family)
        wire.silent = True
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await features(engine, family, deadline=started + 0.2)
        assert time.monotonic() - started < 0.5
        with pytest.raises(UnavailableError):
            await features(engine, family)
        assert time.monotonic() - started < 5.0
        wire.silent = False
        await answered(lambda: features(engine, family))


async def test_a_half_open_connection_holds_up_neither_loading_nor_what_comes_after(
    tmp_path, serve_triton, family
):
    triton = serve_triton(tmp_path)
    async with (
        Proxy(triton.grpc_address) as wire,
        triton_engine(wire.address, control_seconds=1.0, **QUICK) as engine,
    ):
        endpoint = Endpoint(wire.address, TritonOptions(control_seconds=1.0))
        await endpoint.index()
        await engine.discover()
        wire.freeze()
        started = time.monotonic()
        with pytest.raises(TritonError) as caught:
            await endpoint.load(f"{family}_guide")
        assert caught.value.trouble in AWAY
        with pytest.raises(UnavailableError):
            await engine.load(family)
        assert time.monotonic() - started < 10.0
        await endpoint.load(f"{family}_guide")
        await answered(lambda: engine.load(family))
        await features(engine, family)
        await endpoint.close()


async def test_two_tritons_share_the_work_and_one_of_them_is_enough(tmp_path, serve_triton, family):
    first, second = serve_triton(tmp_path), serve_triton(tmp_path)
    async with triton_engine(first, second, **QUICK) as engine:
        await engine.load(family)
        await asyncio.gather(*(features(engine, family) for _ in range(16)))
        counts = [statistics(server, f"{family}_features")[0] for server in (first, second)]
        assert sum(counts) == 16
        assert min(counts) >= 4
        first.kill()
        # Nobody is turned away: what the dead one does not answer goes to the other.
        for _ in range(20):
            await features(engine, family)
        first.start()
        deadline = time.monotonic() + 10.0
        while states(first)[f"{family}_features"] != "READY":
            assert time.monotonic() < deadline
            await features(engine, family)
            await asyncio.sleep(0.05)


async def test_guidance_serves_at_every_address(tmp_path, serve_triton, family):
    servers = [serve_triton(tmp_path) for _ in range(2)]
    async with triton_engine(*servers, shared_bytes=1) as engine:
        await engine.load(family)
        maps = await features(engine, family)
        handle = await engine.put_guidance(family, {"prototypes": prototypes()})
        answers = [
            await engine.run(family, GraphRole.DECODE, maps, guidance=handle) for _ in range(4)
        ]
        assert len({answer["logits"].tobytes() for answer in answers}) == 1
    assert [statistics(server, f"{family}_decode")[0] for server in servers] == [2, 2]


async def test_an_address_that_is_down_at_the_start_joins_later(tmp_path, serve_triton, family):
    first, second = serve_triton(tmp_path), serve_triton(tmp_path)
    second.kill()
    async with triton_engine(first, second, **QUICK) as engine:
        await engine.load(family)
        await features(engine, family)
        second.start()
        deadline = time.monotonic() + 10.0
        while "READY" not in states(second).values():
            assert time.monotonic() < deadline
            await features(engine, family)
            await asyncio.sleep(0.05)


async def test_without_any_server_every_call_fails_soon(tmp_path, serve_triton, family):
    triton = serve_triton(tmp_path)
    triton.kill()
    async with triton_engine(triton, **QUICK) as engine:
        for call in (engine.discover, lambda: engine.load(family)):
            started = time.monotonic()
            with pytest.raises(UnavailableError) as caught:
                await call()
            assert caught.value.reason == "ENGINE_UNREACHABLE"
            assert caught.value.retry_after > 0
            assert time.monotonic() - started < 3.0


async def test_a_new_family_takes_over_while_requests_run(tmp_path, serve_triton):
    old = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    telemetry = CountingTelemetry()
    async with (
        triton_engine(triton, telemetry=telemetry, **QUICK) as engine,
        running_gateway(tmp_path, engine=engine, telemetry=telemetry) as gateway,
    ):
        await gateway.tasks.register(red_registration(), Call())
        client = Client(gateway)
        load = [asyncio.create_task(client.run()) for _ in range(4)]
        await asyncio.sleep(0.2)
        new = write_tiny_repository(tmp_path, seed=5, created=_LATER)
        assert await gateway.catalog.refresh() == ()
        await asyncio.sleep(0.5)
        client.stopped = True
        await asyncio.gather(*load)
        assert client.refusals == []
        assert list(client.masks) == [old, new]
        await gateway.catalog.close()
        assert states(triton)[f"{old}_decode"] != "READY"
        assert states(triton)[f"{new}_decode"] == "READY"


async def test_tls_with_a_certificate_of_both_sides(tmp_path, serve_triton):
    repository, keys = tmp_path / "repository", tmp_path / "keys"
    family = write_tiny_repository(repository)
    keys.mkdir()
    make_certificates(keys)
    triton = serve_triton(
        repository,
        options=(
            "--grpc-use-ssl-mutual=true",
            f"--grpc-server-cert={keys}/server.pem",
            f"--grpc-server-key={keys}/server.key",
            f"--grpc-root-cert={keys}/ca.pem",
        ),
    )
    address = triton.grpc_address
    mutual = {
        "tls": True,
        "tls_ca": keys / "ca.pem",
        "tls_certificate": keys / "client.pem",
        "tls_key": keys / "client.key",
    }
    async with triton_engine(address, **mutual) as engine:
        await engine.load(family)
        await features(engine, family)
    async with triton_engine(address, tls=True, tls_ca=keys / "ca.pem") as engine:
        with pytest.raises(UnavailableError):
            await engine.discover()


def make_certificates(folder):
    """An authority, and a certificate each for server and client."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=tests")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        subject = ("-subj", f"/CN={name}")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", *subject)
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")


async def test_a_slow_model_costs_a_call_its_deadline_and_frees_its_slot(tmp_path, serve_triton):
    write_tiny_repository(tmp_path, slow_decode=200_000)
    async with (
        triton_engine(serve_triton(tmp_path), **QUICK) as engine,
        running_gateway(tmp_path, engine=engine, slots=1) as gateway,
    ):
        await gateway.tasks.register(red_registration(), Call())
        for _ in range(3):
            started = time.monotonic()
            call = Call(deadline=started + 0.2)
            with pytest.raises(DeadlineExceededError):
                await gateway.segmenter.segment(query(red_query()), call)
            assert time.monotonic() - started < 1.0
        assert gateway._admission.in_flight == 0
        await gateway.segmenter.segment(query(red_query()), Call())
