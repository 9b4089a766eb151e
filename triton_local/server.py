# SPDX-License-Identifier: Apache-2.0
"""Starts and stops a real ``tritonserver``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from triton_local.environment import Environment, ensure_environment
from triton_local.guard import Guard

_BACKEND_MODEL: Final = Path(__file__).parent / "backend" / "model.py"
_SHARED_MEMORY: Final = Path("/dev/shm")
_POLL_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 20.0
_FIRST_LINES: Final = 3
_LAST_LINES: Final = 12


class TritonProblem(Exception):  # noqa: N818
    """The server does not start; the message ends with lines of its log."""


class LocalTriton:
    """A Triton server over a model repository, on loopback.

    Use it as a context manager, or call ``start`` and ``stop``. The ports stay the same when it is
    started again, so that clients find it. It ends with this process, even where that is killed.

    Args:
        repository: The model repository.
        environment: Where the server is installed; made if None.
        control: ``explicit``: clients load and unload models; ``none``: all models are loaded at
            the start, and stay.
        grpc_port, http_port, metrics_port: 0 for free ones.
        log: File of the server's log; None for one that goes away with this object's work folder.
        options: Further command line options.
    """

    def __init__(
        self,
        repository: Path,
        *,
        environment: Environment | None = None,
        control: Literal["explicit", "none"] = "explicit",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        log: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._repository = repository.absolute()
        self._environment = environment or ensure_environment()
        self._control = control
        self._options = tuple(options)
        free = _free_ports(3)
        self._grpc_port = grpc_port or free[0]
        self._http_port = http_port or free[1]
        self._metrics_port = metrics_port or free[2]
        self._folder = tempfile.TemporaryDirectory(prefix="fewseg-triton-")
        self._log = log or Path(self._folder.name) / "triton.log"
        self._log_start = 0
        # Names the server's shared memory, so that what a killed server leaves can be told apart.
        self._region = f"fewseg-triton-{uuid.uuid4().hex[:12]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        _copy_backends(self._environment, Path(self._folder.name) / "backends")

    @property
    def grpc_address(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return f"127.0.0.1:{self._grpc_port}"

    @property
    def http_address(self) -> str:
        """``host:port`` of the HTTP endpoint."""
        return f"127.0.0.1:{self._http_port}"

    @property
    def metrics_address(self) -> str:
        """``host:port`` of the Prometheus endpoint."""
        return f"127.0.0.1:{self._metrics_port}"

    @property
    def shared_memory(self) -> set[str]:
        """Names of the server's own regions of shared memory."""
        return {path.name for path in _SHARED_MEMORY.glob(f"{self._region}*")}

    @property
    def log(self) -> Path:
        """The server's log."""
        return self._log

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, timeout: float = 60.0) -> None:
        """Starts the server and returns when it is ready.

        Args:
            timeout: Seconds; models that are loaded at the start count.

        Raises:
            TritonProblem: It ended, or is not ready in time.
        """
        if self.pid is not None:
            return
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C at the terminal is the launcher's to handle.
                start_new_session=True,
            )
        self._guard = Guard(
            self._process.pid, _SHARED_MEMORY / self._region, Path(self._folder.name)
        )
        try:
            self._wait_until_ready(time.monotonic() + timeout)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Asks the server to end, waits until it has, and removes what it left. Idempotent."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends the server and its stubs at once, as a crash would, and removes what they left."""
        process = self._process
        if process is None:
            return
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        # The stubs belong to the group; they outlive a killed server for some seconds.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._process = None
        for region in self.shared_memory:
            (_SHARED_MEMORY / region).unlink(missing_ok=True)

    def restart(self, timeout: float = 60.0) -> None:
        """Stops the server and starts it again on the same ports."""
        self.stop()
        self.start(timeout)

    def wait(self) -> int:
        """Waits until the server ends by itself and returns its exit status."""
        return self._process.wait() if self._process is not None else 0

    def close(self) -> None:
        """Stops the server and removes the work folder. Idempotent."""
        self.stop()
        self._folder.cleanup()

    def _command(self) -> list[str]:
        regions = f"shm-region-prefix-name={self._region}"
        return [
            str(self._environment.server),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._folder.name}/backends",
            f"--model-control-mode={self._control}",
            "--disable-auto-complete-config",
            "--exit-on-error=false",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
            f"--http-port={self._http_port}",
            f"--grpc-port={self._grpc_port}",
            f"--metrics-port={self._metrics_port}",
            "--allow-gpu-metrics=false",
            f"--backend-config=python,{regions}",
            f"--backend-config=onnxruntime,{regions}",
            *self._options,
        ]

    def _variables(self) -> dict[str, str]:
        environment = self._environment
        variables = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        }
        return variables | {
            # The stub takes the packages of the first interpreter on PATH, and of no other.
            "PATH": f"{environment.binaries}:{variables.get('PATH', '')}",
            "LD_LIBRARY_PATH": ":".join(
                [
                    str(environment.libraries),
                    str(environment.python_libraries),
                    *filter(None, [variables.get("LD_LIBRARY_PATH")]),
                ]
            ),
            "ORT_DISABLE_TELEMETRY": "1",
        }

    def _wait_until_ready(self, deadline: float) -> None:
        url = f"http://{self.http_address}/v2/health/ready"
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise TritonProblem(f"tritonserver ended.\n{self._log_extract()}")
            with suppress(OSError), urllib.request.urlopen(url, timeout=1.0) as answer:
                if answer.status == 200:
                    return
            time.sleep(_POLL_SECONDS)
        raise TritonProblem(f"tritonserver is not ready in time.\n{self._log_extract()}")

    def _log_extract(self) -> str:
        """How the log of this start begins and ends."""
        lines = self._log.read_bytes()[self._log_start :].decode(errors="replace").splitlines()
        if len(lines) > _FIRST_LINES + _LAST_LINES:
            lines = [*lines[:_FIRST_LINES], "...", *lines[-_LAST_LINES:]]
        return "\n".join(lines)


def _copy_backends(environment: Environment, folder: Path) -> None:
    """Lays out a backend directory; the server refuses links that lead out of it."""
    python, runtime = folder / "python", folder / "onnxruntime"
    shutil.copytree(environment.python_backend, python, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy2(environment.stub, python)
    runtime.mkdir()
    shutil.copy(_BACKEND_MODEL, runtime)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all different."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
