import gc
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from fewseg.v1 import model_service_pb2 as models
from fewseg.v1 import model_service_pb2_grpc as models_grpc
from service.core.errors import FewSegError
from service.embedded import start
from service.wiring import SetupError
from tests.helpers.tiny_repository import write_tiny_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_repository(root)
    return root


def socket_of(service):
    return Path(service.target.removeprefix("unix:"))


def aliases(target):
    with grpc.insecure_channel(target) as channel:
        listed = models_grpc.ModelServiceStub(channel).ListModels(
            models.ListModelsRequest(), timeout=10
        )
    return [model.alias for model in listed.models]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "fewseg-embedded"]


def test_it_serves_over_a_socket_that_only_this_user_reaches(repository):
    service = start(repository=str(repository))
    try:
        assert aliases(service.target) == ["tiny"]
        folder = socket_of(service).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(os.fsencode(socket_of(service))) < 100
    finally:
        service.close()
    assert not folder.exists()
    assert not threads()
    service.close()


def test_two_services_live_beside_each_other(repository):
    one, other = start(repository=repository), start(repository=repository)
    try:
        assert one.target != other.target
        one.close()
        assert aliases(other.target) == ["tiny"]
    finally:
        one.close()
        other.close()


def test_a_service_that_nobody_refers_to_ends(repository):
    service = start(repository=repository)
    folder = socket_of(service).parent
    del service
    gc.collect()
    assert not folder.exists()
    assert not threads()


def test_it_starts_where_temporary_folders_lie_too_deep_for_a_socket(
    repository, monkeypatch, tmp_path
):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    service = start(repository=repository)
    try:
        assert aliases(service.target) == ["tiny"]
    finally:
        service.close()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"repositroy": "x"}, TypeError, "no setting repositroy"),
        ({"port": "x"}, ValueError, "port: "),
        ({"repository": "/nowhere"}, SetupError, "/nowhere"),
        ({"providers": ("NoSuchProvider",)}, SetupError, "NoSuchProvider is not installed"),
    ],
)
def test_what_is_wrong_is_raised_to_the_caller(options, kind, message, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(kind, match=message):
        start(**options)
    assert not list(tmp_path.iterdir())
    assert not threads()


def test_an_empty_repository_is_refused(tmp_path):
    with pytest.raises(FewSegError, match="holds no family"):
        start(repository=tmp_path)


def test_a_process_that_forgets_to_close_it_ends_cleanly(repository, tmp_path):
    program = (
        "from service.embedded import start\n"
        f"service = start(repository={str(repository)!r})\n"
        "print(service.target)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("unix:")
    assert not list(tmp_path.iterdir())


def test_a_forked_process_leaves_the_service_of_its_parent_alone(repository, monkeypatch):
    service = start(repository=repository)
    try:
        with monkeypatch.context() as forked:
            parent = os.getpid()
            forked.setattr("service.embedded.os.getpid", lambda: parent + 1)
            finalizer = service._end.peek()
            finalizer[1](*finalizer[2])
        assert aliases(service.target) == ["tiny"]
    finally:
        service.close()
