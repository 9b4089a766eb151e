import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import grpc
import pytest

from fewseg.v1 import model_service_pb2 as models
from fewseg.v1 import model_service_pb2_grpc as models_grpc
from fewseg.v1 import task_service_pb2_grpc as tasks_grpc
from service.config import Settings
from service.main import main, serve
from tests.helpers.server_process import command, environment, lines_until, serving
from tests.helpers.tiny_repository import write_tiny_repository


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "models"
    write_tiny_repository(root)
    return root


def list_models(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = models_grpc.ModelServiceStub(channel)
        listed = stub.ListModels(models.ListModelsRequest(), timeout=10)
    return [model.alias for model in listed.models]


def metrics_of(ready):
    url = f"http://127.0.0.1:{ready['metrics_port']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_it_serves_refreshes_and_ends_well_on_a_signal(repository):
    with serving(repository) as (process, ready):
        assert list_models(ready["port"]) == ["tiny"]
        assert "ListModels" in metrics_of(ready)
        write_tiny_repository(repository, "added")
        process.send_signal(signal.SIGHUP)
        assert len(lines_until(process, "models_refreshed")["families"]) == 2
        assert list_models(ready["port"]) == ["added", "tiny"]
        process.send_signal(signal.SIGTERM)
        lines_until(process, "stopped")
        assert process.wait(20) == 0
    assert (repository.parent / "fewseg-data" / "fewseg.db").exists()


def test_a_second_signal_ends_it_at_once(repository):
    with serving(repository, "--drain-seconds", "60", "--log-level", "DEBUG") as (process, ready):
        held_open = threading.Event()

        def nothing_for_now():
            held_open.wait()
            yield from ()

        channel = grpc.insecure_channel(f"127.0.0.1:{ready['port']}")
        # A stream that stays open keeps a graceful stop waiting.
        stream = tasks_grpc.TaskServiceStub(channel).AddSupports.future(nothing_for_now())
        while 'AddSupports"} 1.0' not in metrics_of(ready):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        lines_until(process, "stopping")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
        held_open.set()
        stream.cancel()
        channel.close()


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_taken_port_is_told_and_ends_it(repository, option):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            command(repository, "--store", "memory", option, str(port)),
            cwd=repository.parent,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("fewseg-serve: ")
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr


def failure(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("service.logs.configure", lambda *args: None)
    with pytest.raises(SystemExit) as caught:
        main(["--port", "0", "--metrics-port", "0", "--store", "memory", *arguments])
    return caught.value.code, capsys.readouterr().err


def test_a_missing_repository_is_told(capsys, monkeypatch):
    code, text = failure(capsys, monkeypatch, "--repository", "/nowhere")
    assert code == 1
    assert "/nowhere" in text


def test_a_broken_repository_is_told(capsys, monkeypatch, repository):
    family = next(path for path in repository.iterdir() if path.name.endswith("_decode"))
    (family / "1" / "model.onnx").write_bytes(b"not a network")
    code, text = failure(capsys, monkeypatch, "--repository", str(repository))
    assert code == 1
    assert family.name in text


def test_certificates_that_cannot_be_read_are_told(capsys, monkeypatch, repository):
    code, text = failure(
        capsys,
        monkeypatch,
        *("--repository", str(repository)),
        *("--tls-certificate", "/nowhere.pem", "--tls-key", "/nowhere.key"),
    )
    assert code == 1
    assert "/nowhere.pem cannot be read" in text


def test_the_version_and_the_settings_are_printed_without_serving(capsys, monkeypatch):
    for name in [name for name in os.environ if name.startswith("FEWSEG_")]:
        monkeypatch.delenv(name)
    main(["--version"])
    assert capsys.readouterr().out.strip()[0].isdigit()
    main(["--print-config", "--port", "1"])
    assert "port = 1\n" in capsys.readouterr().out


class SlowServer:
    """A server whose models take for ever to load."""

    def __init__(self):
        self.loading = asyncio.Event()
        self.cancelled = False

    async def start(self):
        self.loading.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_a_signal_while_models_load_ends_the_start(monkeypatch):
    server = SlowServer()
    monkeypatch.setattr("service.wiring.build", lambda settings: server)
    served = asyncio.create_task(serve(Settings()))
    await server.loading.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await served
    assert server.cancelled
