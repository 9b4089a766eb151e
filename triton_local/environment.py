# SPDX-License-Identifier: Apache-2.0
"""The environment that the local Triton lives in.

It is a virtual environment of its own: the server's wheel wants NumPy 1, and ONNX Runtime is held
at the version of Triton 24.10's container, so that a graph too new for production fails here too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Where the environment is, if not in the working directory.
LOCATION_VARIABLE: Final = "FEWSEG_TRITON_ENV"
DEFAULT_FOLDER: Final = ".triton-venv"

#: Triton 2.51.0, which is release 24.10.
SERVER: Final = "nvidia-pytriton==0.7.0"
#: What runs the graphs: as in 24.10's container, and NumPy as the server's Python backend needs it.
PACKAGES: Final = ("numpy>=1.26,<2", "onnxruntime==1.19.2")
#: ONNX Runtime 1.19.2 has no wheel for a later Python, this project none for an earlier one.
PYTHONS: Final = ("3.11", "3.12")

_BEGUN: Final = "fewseg-triton.begun"
_STAMP: Final = "fewseg-triton.json"


class EnvironmentProblem(Exception):  # noqa: N818
    """The environment cannot be made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that is complete.

    Attributes:
        folder: The virtual environment.
        version: Its Python, such as "3.11".
        python_libraries: Where that Python's shared library is, if not where the system looks.
    """

    folder: Path
    version: str
    python_libraries: Path

    @property
    def binaries(self) -> Path:
        """Folder that must come first on PATH: the Python stub sees only this interpreter."""
        return self.folder / "bin"

    @property
    def _packages(self) -> Path:
        return self.folder / "lib" / f"python{self.version}" / "site-packages"

    @property
    def server(self) -> Path:
        """The ``tritonserver`` executable."""
        return self._packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def libraries(self) -> Path:
        """Shared libraries of the server."""
        return self._packages / "nvidia_pytriton.libs"

    @property
    def python_backend(self) -> Path:
        """Folder of the server's Python backend."""
        return self._packages / "pytriton" / "tritonserver" / "backends" / "python"

    @property
    def stub(self) -> Path:
        """The process that runs Python models, for this environment's Python."""
        stubs = self._packages / "pytriton" / "tritonserver" / "python_backend_stubs"
        return stubs / self.version / "triton_python_backend_stub"


def default_folder() -> Path:
    """``$FEWSEG_TRITON_ENV``, else ``.triton-venv`` in the working directory."""
    return Path(os.environ.get(LOCATION_VARIABLE) or DEFAULT_FOLDER).absolute()


def ensure_environment(
    folder: Path | None = None, *, report: Callable[[str], None] = lambda _: None
) -> Environment:
    """Returns the environment, which is made at the first call (20 s, 400 MB on disk).

    Processes that need it at the same time wait for the one that makes it. One that was left
    half-finished, or was made of other versions, is made anew.

    Args:
        folder: Where; ``default_folder()`` if None.
        report: Is told what takes long.

    Raises:
        EnvironmentProblem: There is no suitable Python, a package cannot be installed, or the
            folder holds something else.
    """
    folder = default_folder() if folder is None else folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _sole_maker(folder):
        environment = _complete(folder)
        if environment is None:
            _check_replaceable(folder)
            report(f"installing Triton into {folder} (once, about 400 MB)")
            environment = _make(folder)
    return environment


@contextmanager
def _sole_maker(folder: Path) -> Iterator[None]:
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _complete(folder: Path) -> Environment | None:
    """A finished environment of these versions, else None."""
    try:
        stamp = json.loads((folder / _STAMP).read_text())
        environment = Environment(folder, stamp["python"], Path(stamp["python_libraries"]))
        whole = stamp["packages"] == [SERVER, *PACKAGES]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return environment if whole and (environment.binaries / "python").exists() else None


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()) or (folder / _BEGUN).exists():
        return
    raise EnvironmentProblem(
        f"{folder} holds something that fewseg-triton did not make; set {LOCATION_VARIABLE} to "
        "another folder."
    )


def _make(folder: Path) -> Environment:
    version, interpreter = _find_python()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / _BEGUN).touch()
    _run([interpreter, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The wheel's own requirements are those of its Python client, which is not used here.
    _run([*pip, "--no-deps", SERVER])
    _run([*pip, *PACKAGES])
    libraries = _run([python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"])
    environment = Environment(folder, version, Path(libraries.strip()))
    for needed in (environment.server, environment.stub, environment.python_backend):
        if not needed.exists():
            raise EnvironmentProblem(f"{SERVER} does not hold {needed.relative_to(folder)}.")
    _check_python_library(environment)
    # Written last: a folder without it is one that somebody gave up half-way.
    stamp = {
        "packages": [SERVER, *PACKAGES],
        "python": version,
        "python_libraries": libraries.strip(),
    }
    (folder / _STAMP).write_text(json.dumps(stamp))
    return environment


def _check_python_library(environment: Environment) -> None:
    """The stub is linked to the shared library of Python, which not every Python comes with."""
    library = f"libpython{environment.version}.so.1.0"
    done = subprocess.run(
        [environment.binaries / "python", "-c", f"import ctypes; ctypes.CDLL({library!r})"],
        env={**os.environ, "LD_LIBRARY_PATH": str(environment.python_libraries)},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise EnvironmentProblem(
            f"Triton's Python backend needs {library}; install it (Debian: "
            f"libpython{environment.version}), or a Python built with --enable-shared."
        )


def _find_python() -> tuple[str, str]:
    """A version of Python that has all wheels, and its interpreter."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if own in PYTHONS:
        return own, sys.executable
    for version in PYTHONS:
        interpreter = shutil.which(f"python{version}")
        if interpreter is not None:
            return version, interpreter
    raise EnvironmentProblem(
        f"The local Triton needs Python {' or '.join(PYTHONS)}; install one of them."
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise EnvironmentProblem(f"{' '.join(command)} failed:\n" + "\n".join(lines))
    return done.stdout
