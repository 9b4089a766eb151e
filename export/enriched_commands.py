# SPDX-License-Identifier: Apache-2.0
"""The commands of methods that enrich a query at several scales: PFENet and its kin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from export import pfenet_family
from export.dense_commands import Write
from export.methods.pfenet import Masking
from export.options import Checkpoint, Force, MaxBatch, Out, Prune, Size, parse_size

ENRICHED_SIZE = "473"

Bins = Annotated[
    str,
    typer.Option(
        help="Scales of enrichment, ppm_scales in the official configs: sides, or shares of the "
        "grid. 60,30,15,8 for PASCAL at 473; 1.0,0.5,0.25,0.125 for COCO at 641."
    ),
]


def add_commands(
    app: typer.Typer, told_plainly: Callable[[], AbstractContextManager[None]], write: Write
) -> None:
    """Adds the commands; see `dense_commands.add_commands`."""

    @app.command()
    def pfenet(
        out: Out,
        checkpoint: Checkpoint,
        bins: Bins = "60,30,15,8",
        masking: Annotated[
            Masking,
            typer.Option(
                help="What of a support is masked for the prior. both: what goes into layer4 and "
                "what comes out, as in the code. output: what comes out, as in the paper; a new "
                "annotation then costs next to nothing."
            ),
        ] = Masking.BOTH,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "pfenet",
        size: Size = ENRICHED_SIZE,
        max_batch: MaxBatch = pfenet_family.MAX_BATCH,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports PFENet (Tian et al., TPAMI 2020); the file tells its trunk."""
        with told_plainly():
            family = pfenet_family.pfenet_family(
                alias=name,
                network=pfenet_family.pfenet_checkpoint(checkpoint),
                size=parse_size(size),
                bins=pfenet_family.parse_bins(bins),
                provenance={"weights": checkpoint.name},
                masking=masking,
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)
