# SPDX-License-Identifier: Apache-2.0
"""The ``fewseg-triton`` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from triton_local.environment import (
    LOCATION_VARIABLE,
    Environment,
    EnvironmentProblem,
    ensure_environment,
)
from triton_local.server import LocalTriton, TritonProblem

PROGRAM: Final = "fewseg-triton"
_FAILED: Final = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves a model repository until SIGINT or SIGTERM.

    Args:
        arguments: The flags; those of the process if None.

    Raises:
        SystemExit: 1 when the server cannot start or ends by itself, 2 when the flags are wrong.
    """
    options = _parser().parse_args(arguments)
    # Both signals take the way of Ctrl-C, so that the server is stopped and waited for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        environment = ensure_environment(options.environment, report=_say)
        if options.install_only:
            return
        status = _serve(options, environment)
    except (EnvironmentProblem, TritonProblem) as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        raise SystemExit(_FAILED) from error
    except KeyboardInterrupt:
        return
    _say(f"tritonserver ended with status {status}")
    raise SystemExit(_FAILED)


def _serve(options: argparse.Namespace, environment: Environment) -> int:
    """Runs the server; returns its status if it ends by itself."""
    triton = LocalTriton(
        options.repository,
        environment=environment,
        control=options.control,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        log=options.log,
    )
    with triton:
        sys.stdout.write(
            f"gRPC     {triton.grpc_address}\n"
            f"HTTP     {triton.http_address}\n"
            f"metrics  {triton.metrics_address}/metrics\n"
            f"log      {triton.log}\n"
            f"gateway  fewseg-serve --engine triton --triton-address {triton.grpc_address}\n"
        )
        sys.stdout.flush()
        return triton.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Serves a model repository with a real Triton on loopback, for development. "
        "Its first run installs Triton into an environment of its own.",
    )
    parser.add_argument(
        "--repository",
        type=_folder,
        default=Path("model_repository"),
        help="folder of the model repository (default: %(default)s)",
    )
    parser.add_argument(
        "--control",
        choices=("explicit", "none"),
        default="explicit",
        help="explicit: the gateway loads and unloads models; none: all are loaded at the start",
    )
    parser.add_argument("--grpc-port", type=int, default=8001, help="0: any (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=8000, help="0: any (default: %(default)s)")
    parser.add_argument(
        "--metrics-port", type=int, default=8002, help="0: any (default: %(default)s)"
    )
    parser.add_argument("--log", type=Path, help="file of the server's log")
    parser.add_argument(
        "--environment",
        type=Path,
        help=f"folder of the environment (default: ${LOCATION_VARIABLE}, else .triton-venv)",
    )
    parser.add_argument("--install-only", action="store_true", help="make the environment, and end")
    return parser


def _folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return folder


def _say(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {text}\n")


if __name__ == "__main__":
    main()
