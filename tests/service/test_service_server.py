"""Where a server listens."""

import shutil
import subprocess

import grpc
import pytest

from fewseg.v1 import model_service_pb2 as models
from fewseg.v1 import model_service_pb2_grpc as models_grpc
from service.config import Settings
from service.core.errors import UnavailableError
from service.server import ListenError
from service.wiring import build
from tests.helpers.live_server import serving
from tests.helpers.tiny_repository import write_tiny_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_repository(root)
    return root


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of localhost that signed itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "chain.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", key, "-out", chain),
        ],
        check=True,
        capture_output=True,
    )
    return chain, key


async def served_models(channel):
    stub = models_grpc.ModelServiceStub(channel)
    return [model.alias for model in (await stub.ListModels(models.ListModelsRequest())).models]


async def test_it_listens_on_a_free_port_and_a_socket_at_once(repository):
    async with serving(repository, host="127.0.0.1", port=0) as live:
        assert live.server.port > 0
        assert await served_models(live.channel) == ["tiny"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{live.server.port}") as channel:
            assert await served_models(channel) == ["tiny"]


async def test_it_speaks_tls_and_lets_in_who_shows_a_certificate(repository, certificate):
    chain, key = certificate
    tls = {"tls_certificate": chain, "tls_key": key, "tls_client_ca": chain}
    async with serving(repository, host="127.0.0.1", port=0, **tls) as live:
        address = f"localhost:{live.server.port}"
        known = grpc.ssl_channel_credentials(
            chain.read_bytes(), private_key=key.read_bytes(), certificate_chain=chain.read_bytes()
        )
        async with grpc.aio.secure_channel(address, known) as channel:
            assert await served_models(channel) == ["tiny"]
        stranger = grpc.ssl_channel_credentials(chain.read_bytes())
        async with grpc.aio.secure_channel(address, stranger) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served_models(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_taken_port_is_refused_and_everything_is_let_go(repository, tmp_path):
    async with serving(repository, host="127.0.0.1", port=0) as live:
        settings = Settings(
            host="127.0.0.1",
            port=live.server.port,
            metrics_host="",
            repository=repository,
            store_path=tmp_path / "tasks.db",
        )
        with pytest.raises(ListenError, match="address taken"):
            await build(settings).start()
    free = settings.model_copy(update={"port": 0})
    again = build(free)
    await again.start()
    await again.stop()


async def test_a_database_that_another_server_has_is_refused(repository, tmp_path):
    path = tmp_path / "tasks.db"
    async with serving(repository, store="sqlite", store_path=path):
        with pytest.raises(UnavailableError):
            async with serving(repository, store="sqlite", store_path=path):
                pass


async def test_refreshing_with_a_repository_that_is_gone_keeps_what_is_served(tmp_path):
    root = tmp_path / "models"
    write_tiny_repository(root)
    async with serving(root) as live:
        shutil.rmtree(root)
        await live.server.refresh()
        assert await served_models(live.channel) == ["tiny"]
