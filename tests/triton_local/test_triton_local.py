# SPDX-License-Identifier: Apache-2.0
"""The local launcher: a real server, and a stand-in that is as strict as the C++ backend."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from tests.conftest import ROOT
from tests.helpers.tiny_repository import read_config, write_tiny_repository
from tests.helpers.triton import states
from triton_local import EnvironmentProblem, LocalTriton, TritonProblem, ensure_environment
from triton_local.environment import PACKAGES, SERVER


@pytest.fixture
def family(tmp_path):
    return write_tiny_repository(tmp_path)


def test_it_starts_serves_stops_and_leaves_nothing(tmp_path, family, triton_environment):
    with LocalTriton(tmp_path, environment=triton_environment) as triton:
        pid = triton.pid
        with InferenceServerClient(triton.grpc_address) as client:
            client.load_model(f"{family}_features")
            image = InferInput("image", [2, 32, 32, 3], "UINT8")
            image.set_data_from_numpy(np.zeros((2, 32, 32, 3), np.uint8))
            answer = client.infer(f"{family}_features", [image])
            assert answer.as_numpy("features").shape == (2, 8, 4, 4)
        assert triton.shared_memory
        folder = triton.log.parent
    assert not triton.shared_memory
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_killed_one_leaves_nothing_and_starts_again_where_it_was(
    tmp_path, family, triton_environment
):
    with LocalTriton(tmp_path, environment=triton_environment) as triton:
        address = triton.grpc_address
        with InferenceServerClient(address) as client:
            client.load_model(f"{family}_features")
        triton.kill()
        assert triton.pid is None
        assert not triton.shared_memory
        triton.start()
        assert triton.grpc_address == address
        assert "READY" not in states(triton).values()


_OWNER = """
import json, sys, time
from pathlib import Path
from tritonclient.grpc import InferenceServerClient
from triton_local import LocalTriton, ensure_environment

triton = LocalTriton(Path(sys.argv[1]), environment=ensure_environment(Path(sys.argv[2])))
triton.start()
with InferenceServerClient(triton.grpc_address) as client:
    client.load_model(sys.argv[3])
left = [f"/proc/{triton.pid}", str(triton.log.parent)]
print(json.dumps([*left, *(f"/dev/shm/{name}" for name in triton.shared_memory)]), flush=True)
time.sleep(60)
"""


def test_it_ends_with_its_owner_even_where_that_is_killed(tmp_path, family, triton_environment):
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, tmp_path, triton_environment.folder, f"{family}_guide"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        left = [Path(path) for path in json.loads(owner.stdout.readline())]
        assert len(left) > 2
        assert all(path.exists() for path in left)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    deadline = time.monotonic() + 20.0
    while any(path.exists() for path in left):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_model_control_everything_is_loaded_at_the_start(tmp_path, family, serve_triton):
    assert set(states(serve_triton(tmp_path, control="none")).values()) == {"READY"}


def test_a_server_that_ends_at_once_says_why(tmp_path, triton_environment):
    triton = LocalTriton(tmp_path, environment=triton_environment, options=["--no-such-option"])
    with pytest.raises(TritonProblem, match="no-such-option"):
        triton.start()
    triton.close()


def output_open(config, graph):
    config.output[0].dims[1] = -1


def input_wider(config, graph):
    config.input[0].dims[0] = -1


def input_of_other_type(config, graph):
    config.input[0].data_type = 12


def input_unknown(config, graph):
    config.input[0].name = "maps"


def batch_fixed(config, graph):
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def newer_representation(config, graph):
    graph.ir_version = 11


def newer_operators(config, graph):
    graph.opset_import[0].version = 23


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (output_open, r"tensor 'prototypes'.*\[-1, -1, 8\].*\[-1, -1, -1\]"),
        (input_wider, "tensor 'features'"),
        (input_of_other_type, r"tensor\(float\) in the graph"),
        (input_unknown, "the graph's inputs are"),
        (batch_fixed, "first axis is not a symbolic batch"),
        (newer_representation, "IR version"),
        (newer_operators, "opset"),
    ],
)
def test_the_stand_in_refuses_what_the_backend_of_production_refuses(
    tmp_path, family, serve_triton, change, told
):
    folder = tmp_path / f"{family}_guide"
    config, graph = read_config(folder), onnx.load(folder / "1" / "model.onnx")
    change(config, graph)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    onnx.save(graph, folder / "1" / "model.onnx")
    with (
        InferenceServerClient(serve_triton(tmp_path).grpc_address) as client,
        pytest.raises(InferenceServerException, match=told),
    ):
        client.load_model(folder.name)


def test_the_stand_in_lets_an_input_be_narrower_than_its_graph(tmp_path, family, serve_triton):
    folder = tmp_path / f"{family}_guide"
    config = read_config(folder)
    config.input[1].dims[0] = 2
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    with InferenceServerClient(serve_triton(tmp_path).grpc_address) as client:
        client.load_model(folder.name)
        assert client.is_model_ready(folder.name)


def test_an_environment_that_is_there_is_used_as_it_is(triton_environment):
    started = time.monotonic()
    assert ensure_environment(triton_environment.folder) == triton_environment
    assert time.monotonic() - started < 1.0
    stamp = json.loads((triton_environment.folder / "fewseg-triton.json").read_text())
    assert stamp["packages"] == [SERVER, *PACKAGES]


def test_a_half_finished_environment_is_made_anew(tmp_path, monkeypatch):
    folder = tmp_path / "environment"
    folder.mkdir()
    (folder / "fewseg-triton.begun").touch()
    (folder / "left-behind").touch()
    monkeypatch.setattr("triton_local.environment._find_python", lambda: ("3.11", "/bin/false"))
    reports = []
    with pytest.raises(EnvironmentProblem, match="/bin/false"):
        ensure_environment(folder, report=reports.append)
    assert not (folder / "left-behind").exists()
    assert len(reports) == 1


def test_somebody_elses_folder_is_not_touched(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(EnvironmentProblem, match="FEWSEG_TRITON_ENV"):
        ensure_environment(tmp_path)
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(tmp_path, family, triton_environment, number):
    command = [sys.executable, "-m", "triton_local.cli", "--repository", str(tmp_path)]
    command += ["--environment", str(triton_environment.folder)]
    command += ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
    )
    try:
        addresses = dict(process.stdout.readline().split(maxsplit=1) for _ in range(3))
        with InferenceServerClient(addresses["gRPC"].strip()) as client:
            assert client.is_server_ready()
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _hear_interrupts():
    # A shell lets what it starts in the background ignore them, and so would all it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_missing_repository_is_refused_before_anything_is_installed(tmp_path):
    command = [sys.executable, "-m", "triton_local.cli", "--repository", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no folder" in done.stderr
