"""The examples run as they are, against a server that is small but real."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from service.embedded import start
from tests.helpers.tiny_repository import write_tiny_repository

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    write_tiny_repository(root)
    service = start(repository=root)
    yield service.target
    service.close()


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "--server", server, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_register_and_segment(run, tmp_path):
    assert "was answered by tiny-" in run("register_and_segment")
    assert Image.open(tmp_path / "coins.png").size == (200, 303)


def test_interactive(run, tmp_path):
    told = run("interactive").splitlines()
    assert [line.split(":")[0] for line in told] == [f"click {n}" for n in (1, 2, 3, 4)]
    assert "inferred" in told[0]
    assert "given" in told[3]
    assert len(list(tmp_path.glob("cat-*.png"))) == 4


def test_stream(run):
    told = run("stream", "--frames", "12")
    assert "frame 6: The bytes are not a readable image" in told
    assert "frames per second" in told


def test_many_supports(run):
    told = run("many_supports", "--supports", "30")
    assert "worst: crop-" in told
    assert "29 supports are left" in told
