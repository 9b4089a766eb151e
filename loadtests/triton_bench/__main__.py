"""What the gateway adds to Triton: ``python -m loadtests.triton_bench``.

It starts a real Triton over the default repository, a gateway in front of it, and an echo server,
and prints three tables:

* one caller: a Segment through the gateway, the same by a plain server that does nothing more, a
  call of the same ensemble with tritonclient, and the floor of what lies between (an echo of the
  same payloads; decoding, resizing, upsampling, decision, statistics and encoding written straight
  down);
* the bytes that a Segment exchanges with Triton, by the graphs that it runs;
* sixteen callers of different tasks: Triton's own statistics of batching, and the throughput beside
  what the cores allow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests.triton_bench.many_callers import many_callers
from loadtests.triton_bench.one_caller import one_caller
from loadtests.triton_bench.stand import Setup, setup

_REPOSITORY = Path("model_repository")


def wire(made: Setup) -> Table:
    """Prints what a Segment of one class exchanges with Triton."""
    table = Table("bytes of a Segment", "to Triton", "from Triton")
    for roles in (("query_decoder",), ("features", "decode"), ("decode",)):
        sent = received = 0
        for role in roles:
            config = made.client.get_model_config(f"{made.family}_{role}").config
            sent += sum(_bytes(tensor) for tensor in config.input)
            received += sum(_bytes(tensor) for tensor in config.output)
        table.add_row(" + ".join(roles), f"{sent:,}", f"{received:,}")
    return table


def _bytes(tensor: Any) -> int:
    """Bytes of a tensor whose open extent is background and one class."""
    size = 1 if tensor.data_type == 2 else 4
    return size * int(np.prod([2 if extent == -1 else extent for extent in tensor.dims]))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser("loadtests.triton_bench", description=__doc__)
    parser.add_argument(
        "--count", type=int, default=100, help="calls of the one caller; 0 for none"
    )
    parser.add_argument("--seconds", type=float, default=24.0, help="of the sixteen callers")
    parser.add_argument("--repository", type=Path, default=_REPOSITORY, help="of the default model")
    options = parser.parse_args()
    out = Console()
    with setup(options.repository) as made:
        if options.count:
            out.print(wire(made))
            out.print(one_caller(made, options.count))
        out.print(*many_callers(made, options.seconds), sep="\n")


if __name__ == "__main__":
    main()
