# SPDX-License-Identifier: Apache-2.0
"""The commands of SCL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from export import pfenet_family, scl_canet_family, scl_pfenet_family
from export.dense_commands import Write
from export.enriched_commands import ENRICHED_SIZE, Bins
from export.family import NATIVE_PIXELS
from export.options import (
    Checkpoint,
    Force,
    MaxBatch,
    MaxPixels,
    Out,
    Prune,
    Size,
    parse_size,
)


def add_commands(
    app: typer.Typer, told_plainly: Callable[[], AbstractContextManager[None]], write: Write
) -> None:
    """Adds the commands; see `dense_commands.add_commands`."""

    @app.command()
    def scl_canet(
        out: Out,
        checkpoint: Checkpoint,
        passes: Annotated[
            int, typer.Option(help="Over each query: the first mask, and those that see the last.")
        ] = scl_canet_family.PASSES,
        multi_scale: Annotated[
            bool,
            typer.Option(
                "--multi-scale/--single-scale",
                help="Whether to add up the query at 0.7, 1 and 1.3 times its size, as the "
                "official evaluation does.",
            ),
        ] = True,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "scl-canet",
        max_pixels: MaxPixels = NATIVE_PIXELS,
        max_batch: MaxBatch = 4,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports SCL on CANet (Zhang et al., CVPR 2021)."""
        with told_plainly():
            family = scl_canet_family.scl_canet_family(
                alias=name,
                network=scl_canet_family.scl_canet_checkpoint(checkpoint),
                provenance={"weights": checkpoint.name},
                max_pixels=max_pixels,
                passes=passes,
                multi_scale=multi_scale,
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)

    @app.command()
    def scl_pfenet(
        out: Out,
        checkpoint: Checkpoint,
        bins: Bins = "60,30,15,8",
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "scl-pfenet",
        size: Size = ENRICHED_SIZE,
        max_batch: MaxBatch = pfenet_family.MAX_BATCH,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports SCL on PFENet (Zhang et al., CVPR 2021); the file tells its trunk."""
        with told_plainly():
            family = scl_pfenet_family.scl_pfenet_family(
                alias=name,
                network=scl_pfenet_family.scl_pfenet_checkpoint(checkpoint),
                size=parse_size(size),
                bins=pfenet_family.parse_bins(bins),
                provenance={"weights": checkpoint.name},
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)
