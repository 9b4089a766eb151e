# SPDX-License-Identifier: Apache-2.0
"""The commands of methods that compare every position of a query with every one of a support."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Protocol

import typer

from export import cyctr_family, hsnet_family, mmformer_family, repri_family
from export.family import Family
from export.methods.cyctr.sampling import TokenLabels
from export.methods.mmformer.graphs import AveragedVectors
from export.methods.mmformer.network import Variant
from export.methods.repri import UPDATES
from export.mmformer_source import mmformer_checkpoint
from export.options import Checkpoint, Force, MaxBatch, Out, Prune, Size, parse_size

HSNET_SIZE = "400"
REPRI_SIZE = "417"
MMFORMER_SIZE = "480"
CYCTR_SIZE = "473"


class Write(Protocol):
    """Writes a family into a repository, and tells of it."""

    def __call__(self, family: Family, out: Path, *, force: bool, prune: bool) -> None:
        """Raises ``ExportError`` if that is not possible."""


def add_commands(
    app: typer.Typer, told_plainly: Callable[[], AbstractContextManager[None]], write: Write
) -> None:
    """Adds the commands.

    Args:
        app: To which program.
        told_plainly: Turns errors that are meant for people into a line and an exit status.
        write: What becomes of a family.
    """

    @app.command()
    def hsnet(
        out: Out,
        checkpoint: Checkpoint,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "hsnet",
        size: Size = HSNET_SIZE,
        max_batch: MaxBatch = hsnet_family.MAX_BATCH,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports HSNet (Min et al., ICCV 2021); the file tells its trunk."""
        with told_plainly():
            family = hsnet_family.hsnet_family(
                alias=name,
                network=hsnet_family.hsnet_checkpoint(checkpoint),
                size=parse_size(size),
                provenance={"weights": checkpoint.name},
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)

    @app.command()
    def repri(
        out: Out,
        checkpoint: Checkpoint,
        updates: Annotated[
            int,
            typer.Option(
                help="Steps of the fit to each query. The code makes 49, the paper says 50."
            ),
        ] = UPDATES,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "repri",
        size: Size = REPRI_SIZE,
        max_batch: MaxBatch = 8,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports RePRI (Boudiaf et al., CVPR 2021); the file tells its trunk."""
        with told_plainly():
            family = repri_family.repri_family(
                alias=name,
                network=repri_family.repri_checkpoint(checkpoint),
                size=parse_size(size),
                provenance={"weights": checkpoint.name},
                updates=updates,
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)

    @app.command()
    def mmformer(
        out: Out,
        checkpoint: Checkpoint,
        variant: Annotated[
            Variant | None,
            typer.Option(
                help="Which network it is. v1 is the paper's, v2 and v2svf the later ones, whose "
                "files cannot be told apart: v2 unless said otherwise."
            ),
        ] = None,
        merge: Annotated[
            AveragedVectors,
            typer.Option(
                help="Of which vectors several shots come to a mean. both: of the object and of "
                "each proposal, as in the code. object: of the object alone, as in the paper; "
                "cosines are averaged over the shots."
            ),
        ] = AveragedVectors.BOTH,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "mmformer",
        size: Size = MMFORMER_SIZE,
        max_batch: MaxBatch = mmformer_family.MAX_BATCH,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports MM-Former (Jiao et al., NeurIPS 2022)."""
        with told_plainly():
            family = mmformer_family.mmformer_family(
                alias=name,
                network=mmformer_checkpoint(checkpoint, variant),
                size=parse_size(size),
                provenance={"weights": checkpoint.name},
                merge=merge,
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)

    @app.command()
    def cyctr(
        out: Out,
        checkpoint: Checkpoint,
        sample_seed: Annotated[
            int,
            typer.Option(
                help="Of the order in which support cells are drawn; the official code draws anew "
                "for every image."
            ),
        ] = cyctr_family.SAMPLE_SEED,
        token_labels: Annotated[
            TokenLabels,
            typer.Option(
                help="What the check of cycles takes drawn cells for. by-number: the label of the "
                "cell whose number is theirs within the group drawn from, as the code looks it up. "
                "own: their own label, as in the paper."
            ),
        ] = TokenLabels.BY_NUMBER,
        name: Annotated[str, typer.Option(help="What tasks call the model.")] = "cyctr",
        size: Size = CYCTR_SIZE,
        max_batch: MaxBatch = cyctr_family.MAX_BATCH,
        force: Force = False,
        prune: Prune = False,
    ) -> None:
        """Exports CyCTR (Zhang et al., NeurIPS 2021); the file tells its trunk."""
        with told_plainly():
            family = cyctr_family.cyctr_family(
                alias=name,
                network=cyctr_family.cyctr_checkpoint(checkpoint),
                size=parse_size(size),
                provenance={"weights": checkpoint.name},
                sample_seed=sample_seed,
                token_labels=token_labels,
                max_batch=max_batch,
            )
            write(family, out, force=force, prune=prune)
