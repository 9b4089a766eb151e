# SPDX-License-Identifier: Apache-2.0
"""`fewseg-serve --engine triton`."""

import re
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from fewseg import Box, Client, Support
from service.config import Settings, load
from service.wiring import SetupError, build
from tests.conftest import ROOT
from tests.helpers.gateway import RED, png, scene
from tests.helpers.tiny_repository import write_tiny_repository

RED_BOX = (8, 8, 32, 32)


def test_flags_say_where_triton_is_and_how_to_talk_to_it():
    settings = load(
        [
            *("--engine", "triton"),
            *("--triton-address", "gpu-1:8001", "--triton-address", "gpu-2:8001"),
            *("--triton-tls", "true", "--triton-tls-ca", "ca.pem"),
            *("--triton-model-control", "false", "--triton-shared-memory", "off"),
        ]
    ).settings()
    assert settings.engine == "triton"
    assert settings.triton_address == ("gpu-1:8001", "gpu-2:8001")
    assert settings.triton_tls
    assert settings.triton_tls_ca.name == "ca.pem"
    assert not settings.triton_model_control
    assert settings.triton_shared_memory == "off"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"triton_tls": True, "triton_tls_key": "key.pem"}, "belong together"),
        ({"triton_tls_ca": "ca.pem"}, "need triton_tls"),
        ({"engine": "tritium"}, "engine"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        Settings(**values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"triton_address": ()}, "triton_address: give one or several"),
        ({"triton_tls": True, "triton_tls_ca": "/nowhere/ca.pem"}, "triton_tls: /nowhere/ca.pem"),
    ],
)
async def test_what_this_machine_does_not_have_is_named(values, told):
    with pytest.raises(SetupError, match=told):
        build(Settings(engine="triton", store="memory", metrics_host="", **values))


def test_the_command_serves_what_triton_runs(tmp_path, serve_triton):
    family = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    command = [sys.executable, "-m", "service.main", "--engine", "triton"]
    command += ["--triton-address", triton.grpc_address, "--store", "memory"]
    command += ["--port", "0", "--metrics-port", "0", "--log-format", "json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        port = _port_of(process)
        with Client(f"127.0.0.1:{port}") as client:
            assert client.server_info().engine == "triton"
            support = Support(png(scene((RED, RED_BOX))), Box(*RED_BOX, "red"))
            client.register(["red"], [support], task_id="reds")
            answer = client.segment("reds", png(scene((RED, (40, 16, 64, 48)), seed=9)))
            assert answer.family == family
            assert answer.mask[20:40, 44:60].all()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _port_of(process):
    for line in process.stdout:
        found = re.search(rb'"port": ?(\d+)', line)
        if found:
            return int(found[1])
    raise AssertionError("the server ended before it served")


def test_a_server_that_starts_before_triton_waits_for_it(tmp_path, serve_triton, unused_tcp_port):
    family = write_tiny_repository(tmp_path)
    triton = serve_triton(tmp_path)
    triton.kill()
    command = [sys.executable, "-m", "service.main", "--engine", "triton", "--store", "memory"]
    command += ["--triton-address", triton.grpc_address, "--metrics-host", ""]
    command += ["--port", str(unused_tcp_port), "--triton-wait-seconds", "60"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert _line_with(process, b"waiting at most 60 s")
        with grpc.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            waiting = check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
            assert waiting.status == health_pb2.HealthCheckResponse.NOT_SERVING
            triton.start()
            assert _port_of(process) == unused_tcp_port
            serving = check(health_pb2.HealthCheckRequest(), timeout=10)
            assert serving.status == health_pb2.HealthCheckResponse.SERVING
        with Client(f"127.0.0.1:{unused_tcp_port}") as client:
            assert client.models()[0].family == family
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_signal_ends_a_server_that_waits(unused_tcp_port):
    command = [sys.executable, "-m", "service.main", "--engine", "triton", "--store", "memory"]
    command += ["--triton-address", f"127.0.0.1:{unused_tcp_port}", "--metrics-host", ""]
    command += ["--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert _line_with(process, b"waiting at most 60 s")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _line_with(process, text):
    return next((line for line in process.stdout if text in line), b"")


def test_the_command_ends_when_there_is_no_triton(unused_tcp_port):
    command = [sys.executable, "-m", "service.main", "--engine", "triton", "--store", "memory"]
    command += ["--triton-address", f"127.0.0.1:{unused_tcp_port}", "--metrics-host", ""]
    command += ["--port", "0", "--triton-wait-seconds", "0.3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Triton cannot be reached" in done.stderr
