# SPDX-License-Identifier: Apache-2.0
"""Options that the commands of several methods share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from export.errors import ExportError

NATIVE = "native"
"""The size of inputs that are images at their own size."""

Out = Annotated[Path, typer.Option(help="Model repository to write to; made if it is not there.")]
Size = Annotated[str, typer.Option(help="Input of the network: S for SxS, or HxW.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the family if it is there already.")]
Prune = Annotated[
    bool, typer.Option("--prune", help="Remove the other families of that name afterwards.")
]
Checkpoint = Annotated[Path, typer.Option(help="Snapshot of the official training (.pth).")]
MaxBatch = Annotated[int, typer.Option(min=1, max=128, help="Most queries that run together.")]
MaxPixels = Annotated[
    int,
    typer.Option(
        min=128 * 128,
        help="Most pixels of an image. The network takes images at their own size, and needs about "
        "1 KB of memory a pixel.",
    ),
]
NativeMaxBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=128,
        help=f"Most queries that run together; left out, fewer with --size {NATIVE} than without.",
    ),
]
NativeSize = Annotated[
    str,
    typer.Option(
        help=f"Input of the network: S for SxS, or HxW; {NATIVE}: images at their own size."
    ),
]


def parse_native_size(text: str) -> tuple[int, int] | None:
    """Reads what `parse_size` does, or `native`, which is None."""
    return None if text.lower() == NATIVE else parse_size(text)


def parse_size(text: str) -> tuple[int, int]:
    """Reads `S` or `HxW`.

    Returns:
        Rows and columns.

    Raises:
        ExportError: It is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ExportError(
            f"{text!r} is no size: write --size 417, or --size 321x417 (rows x columns)."
        )
    return int(parts[0]), int(parts[-1])
