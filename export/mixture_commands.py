# SPDX-License-Identifier: Apache-2.0
"""The commands of methods that describe a class by several prototypes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from export import asgnet_family, pmms_family
from export.dense_commands import Write
from export.enriched_commands import ENRICHED_SIZE, Bins
from export.methods.asgnet import Association
from export.options import Checkpoint, Force, MaxBatch, Out, Prune, Size, parse_size
from export.pfenet_family import parse_bins

PMMS_SIZE = "481"


def add_commands(
    app: typer.Typer, told_plainly: Callable[[], AbstractContextManager[None]], write: Write
) -> None:
    """Adds the commands; see `dense_commands.add_commands`."""

    @app.command()
    def pmms(
        out: Out,
        checkpoint: Checkpoint,
        stages: Annotated[
            pmms_family.Stages,
            typer.Option(
                help="Of RPMMs. last: the last stage's margins, as the official code for one shot. "
                "mean: of the stages' probabilities, as for five."
            ),
        ] = pmms_family.Stages.LAST,
        start_seed: Annotated[
            int,
            typer.Option(
                help="Of the directions that mixtures are searched from; no file has them."
            ),
        ] = pmms_family.START_SEED,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "pmms",
        size: Size = PMMS_SIZE,
        max_batch: MaxBatch = 8,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports PMMs or RPMMs (Yang et al., ECCV 2020); the file tells which."""
        with told_plainly():
            family = pmms_family.pmms_family(
                alias=name,
                network=pmms_family.pmms_checkpoint(checkpoint),
                size=parse_size(size),
                provenance={"weights": checkpoint.name},
                stages=stages,
                start_seed=start_seed,
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)

    @app.command()
    def asgnet(
        out: Out,
        checkpoint: Checkpoint,
        bins: Bins = "60,30,15,8",
        association: Annotated[
            Association,
            typer.Option(
                help="What a point's part in a cluster is the exponential of. distance: minus its "
                "distance from the centre, as in the code. square: minus the square, as the "
                "paper's equation 2 may be read."
            ),
        ] = Association.DISTANCE,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "asgnet",
        size: Size = ENRICHED_SIZE,
        max_batch: MaxBatch = asgnet_family.MAX_BATCH,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports ASGNet (Li et al., CVPR 2021); the file tells its trunk."""
        with told_plainly():
            family = asgnet_family.asgnet_family(
                alias=name,
                network=asgnet_family.asgnet_checkpoint(checkpoint),
                size=parse_size(size),
                bins=parse_bins(bins),
                association=association,
                provenance={"weights": checkpoint.name},
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)
