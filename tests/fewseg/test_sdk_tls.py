import shutil
import subprocess

import grpc
import pytest
from fake_fewseg_server import running
from typer.testing import CliRunner

from fewseg import AsyncClient, Client, TlsFiles, Unavailable
from fewseg.cli import app

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Key and self-signed certificate of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=fewseg", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(key), "-out", str(certificate),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


@pytest.fixture
def server(files):
    """Asks its clients for a certificate."""
    key, certificate = (path.read_bytes() for path in files)
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=certificate, require_client_auth=True
    )
    with running(credentials) as fake:
        yield fake


async def test_both_sides_prove_who_they_are(server, files):
    key, certificate = files
    tls = TlsFiles(roots=certificate, certificate=certificate, key=key)
    with Client(server.target, tls=tls) as client:
        assert client.server_info().api_version == "v1"
    async with AsyncClient(server.target, tls=tls) as client:
        assert (await client.server_info()).api_version == "v1"


def test_a_server_that_nobody_vouches_for_is_not_talked_to(server):
    with Client(server.target, tls=True, retries=0) as client, pytest.raises(Unavailable):
        client.server_info()


def test_the_command_takes_authorities(files):
    key, certificate = files
    pair = (key.read_bytes(), certificate.read_bytes())
    with running(grpc.ssl_server_credentials([pair])) as fake:
        options = ["--server", fake.target, "--tls-roots", str(certificate)]
        assert CliRunner().invoke(app, [*options, "info"]).exit_code == 0
