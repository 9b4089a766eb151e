"""Starting the peers, and calling them as their own clients would."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from tritonclient.grpc import service_pb2

from loadtests.peers import plain_grpc, plain_triton
from loadtests.peers.endpoint import ENGINE_SECONDS, FAMILY, GUIDANCE, REPOSITORY
from loadtests.servers import ServerError, stop

_START_SECONDS = 60.0
_TIMEOUT = 30.0
#: Servers close connections that are idle for five seconds.
_IDLE_SECONDS = 2.0
_ROOT = Path(__file__).parents[2]

#: Sends a JPEG, returns the seconds that the peer's engine took, 0 if it does not say.
Call = Callable[[bytes], float]


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that runs.

    Attributes:
        name: Of the server.
        call: Safe from any thread.
        process: Its main process.
        address: Of its first port.
    """

    name: str
    call: Call
    process: psutil.Process
    address: str


def environments() -> Path:
    """Folder of the peers' environments (``make bench-peers`` fills it)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("FEWSEG_PEERS", cache / "fewseg" / "peers"))


def installed(name: str) -> bool:
    """Whether a peer's environment is there."""
    return (environments() / name / "bin" / "python").exists()


@contextlib.contextmanager
def running_peer(
    name: str, repository: Path, family: str, guidance: Any, triton: str = ""
) -> Iterator[Peer]:
    """Runs a peer on free ports of this machine.

    Args:
        name: ``litserve``, ``mlserver``, ``grpc``, or ``triton``: a plain server in front of one.
        repository: Of the model.
        family: Its family.
        guidance: Of the task that the peer answers under.
        triton: Its gRPC address.

    Raises:
        ServerError: It does not answer within a minute.
    """
    with tempfile.TemporaryDirectory(prefix="fewseg-peer-") as folder:
        np.save(Path(folder) / "guidance.npy", guidance)
        environment = os.environ | {
            "PYTHONPATH": str(_ROOT),
            REPOSITORY: str(repository.resolve()),
            FAMILY: family,
            GUIDANCE: str(Path(folder) / "guidance.npy"),
        }
        ports = _free_ports(3)
        starts: dict[str, Callable[[Path, list[int]], tuple[list[str], Call]]] = {
            "litserve": _litserve,
            "mlserver": _mlserver,
            "grpc": _plain,
            "triton": partial(_plain_triton, address=triton),
        }
        command, call = starts[name](Path(folder), ports)
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            family_of_processes = psutil.Process(process.pid)
            try:
                _wait(call, process, log_path, name)
                yield Peer(name, call, family_of_processes, f"127.0.0.1:{ports[0]}")
            finally:
                children = []
                with contextlib.suppress(psutil.NoSuchProcess):
                    children = family_of_processes.children(recursive=True)
                stop(process)
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()


def _python(name: str) -> str:
    return str(environments() / name / "bin" / "python")


def _litserve(folder: Path, ports: list[int]) -> tuple[list[str], Call]:
    command = [_python("litserve"), "-m", "loadtests.peers.litserve_app", str(ports[0])]
    local = threading.local()
    boundary = "fewseg-boundary"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}

    def call(jpeg: bytes) -> float:
        connection = getattr(local, "connection", None)
        if connection is None or time.monotonic() - local.used > _IDLE_SECONDS:
            connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=_TIMEOUT)
            connection.connect()
            local.connection = connection
        try:
            connection.request("POST", "/predict", head + jpeg + tail, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            local.connection = None
            raise
        local.used = time.monotonic()
        if answer.status != http.client.OK:
            raise OSError(f"LitServe answered {answer.status}")
        return float(answer.headers[ENGINE_SECONDS])

    return command, call


def _mlserver(folder: Path, ports: list[int]) -> tuple[list[str], Call]:
    (folder / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "compact",
                "implementation": "loadtests.peers.mlserver_runtime.Segmentation",
            }
        )
    )
    names = ("http_port", "grpc_port", "metrics_port")
    settings = {"host": "127.0.0.1", "parallel_workers": 1} | dict(zip(names, ports, strict=True))
    (folder / "settings.json").write_text(json.dumps(settings))
    command = [str(environments() / "mlserver" / "bin" / "mlserver"), "start", str(folder)]
    channel = grpc.insecure_channel(f"127.0.0.1:{ports[1]}")
    infer: Any = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )

    def call(jpeg: bytes) -> float:
        request = service_pb2.ModelInferRequest(model_name="compact")
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = "image", "BYTES"
        tensor.shape.append(1)
        request.raw_input_contents.append(struct.pack("<I", len(jpeg)) + jpeg)
        answer = infer(request, timeout=_TIMEOUT)
        if answer.raw_output_contents:
            return float(struct.unpack("<d", answer.raw_output_contents[1])[0])
        return float(answer.outputs[1].contents.fp64_contents[0])

    return command, call


def _plain(folder: Path, ports: list[int]) -> tuple[list[str], Call]:
    command = [sys.executable, "-m", "loadtests.peers.plain_grpc", str(ports[0])]
    channel = grpc.insecure_channel(f"127.0.0.1:{ports[0]}")
    segment: Any = channel.unary_unary(f"/{plain_grpc.SERVICE}/{plain_grpc.SEGMENT}")

    def call(jpeg: bytes) -> float:
        (seconds,) = plain_grpc.SECONDS.unpack_from(segment(jpeg, timeout=_TIMEOUT))
        return float(seconds)

    return command, call


def _plain_triton(folder: Path, ports: list[int], address: str) -> tuple[list[str], Call]:
    command = [sys.executable, "-m", "loadtests.peers.plain_triton", str(ports[0]), address]
    channel = grpc.insecure_channel(f"127.0.0.1:{ports[0]}")
    segment: Any = channel.unary_unary(f"/{plain_triton.SERVICE}/{plain_triton.SEGMENT}")

    def call(jpeg: bytes) -> float:
        segment(jpeg, timeout=_TIMEOUT)
        return 0.0  # what Triton takes is no part of its answer

    return command, call


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _wait(call: Call, process: subprocess.Popen[bytes], log: Path, name: str) -> None:
    from loadtests.photographs import photographs

    jpeg = photographs(1, seed=1)[0].jpeg
    started = time.monotonic()
    while time.monotonic() - started < _START_SECONDS and process.poll() is None:
        try:
            call(jpeg)
        except (OSError, http.client.HTTPException, grpc.RpcError):
            time.sleep(0.2)
        else:
            return
    raise ServerError(f"{name} does not answer: {log.read_text()[-2000:].strip()}")
