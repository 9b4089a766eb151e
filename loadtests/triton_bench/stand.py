"""Triton, the gateway, a plain server and the echo, over the default repository."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from loadtests.bench.stand import Stand, family_name
from loadtests.echo import running_echo
from loadtests.floor import StraightLine, network_image
from loadtests.peers.plain_triton import ensemble_inputs
from loadtests.peers.running import Peer, running_peer
from loadtests.photographs import Photograph
from loadtests.servers import running_server
from loadtests.targets import Connection
from triton_local import LocalTriton
from triton_local.environment import Environment

MILLI: Final = 1e3
_FLAGS = {"ready-seconds": "3600"}


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured, and beside what.

    Attributes:
        triton: Behind both servers.
        stand: The gateway, the echo and the graphs called directly.
        family: That is served.
        client: Of Triton.
        prototypes: Guidance of the plain server's task, float32 [1, 2, channels].
        plain: A server that runs the straight line around a call of Triton.
    """

    triton: LocalTriton
    stand: Stand
    family: str
    client: InferenceServerClient
    prototypes: NDArray[np.float32]
    plain: Peer


@contextmanager
def setup(repository: Path, environment: Environment | None = None) -> Iterator[Setup]:
    """Starts Triton, a gateway, a plain server and the echo.

    Args:
        repository: Of the default model.
        environment: Where Triton is installed; None for the usual place.
    """
    with ExitStack() as stack:
        triton = stack.enter_context(LocalTriton(repository, environment=environment))
        flags = _FLAGS | {"triton-address": triton.grpc_address, "slots": "32"}
        flags["repository"] = str(repository)
        server = stack.enter_context(running_server("triton", flags))
        target, _ = stack.enter_context(running_echo("aio"))
        echo = Connection(target)
        stack.callback(echo.close)
        family = family_name(repository)
        stand = Stand(server, echo, StraightLine(repository, family))
        stack.callback(stand.connection.close)
        client = stack.enter_context(InferenceServerClient(triton.grpc_address))
        guidance = stand.prototypes(1, seed=1)
        plain = stack.enter_context(
            running_peer("triton", repository, family, guidance, triton.grpc_address)
        )
        yield Setup(triton, stand, family, client, guidance, plain)


def tensors_of(image: Photograph, prototypes: NDArray[np.float32]) -> list[Any]:
    """Inputs of the ensemble."""
    return ensemble_inputs(network_image(image.jpeg), prototypes)


def infer(made: Setup, inputs: Sequence[Any]) -> None:
    """Calls the ensemble as somebody who has its tensors."""
    made.client.infer(f"{made.family}_query_decoder", inputs).as_numpy("logits")


def verdict(met: bool) -> str:
    """What a table says of a target."""
    return "met" if met else "missed"
