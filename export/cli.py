# SPDX-License-Identifier: Apache-2.0
"""The `fewseg-export` command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from export import canet_family, sgone_family, sources
from export.care import add_commands
from export.compact_family import compact_family
from export.dense_commands import add_commands as add_dense_commands
from export.derived_commands import add_commands as add_derived_commands
from export.enriched_commands import add_commands as add_enriched_commands
from export.errors import ExportError
from export.family import NATIVE_PIXELS, Family
from export.methods.revolver import ShotMean
from export.mixture_commands import add_commands as add_mixture_commands
from export.options import (
    Checkpoint,
    Force,
    MaxBatch,
    MaxPixels,
    NativeMaxBatch,
    NativeSize,
    Out,
    Prune,
    Size,
    parse_native_size,
    parse_size,
)
from export.prototype_family import prototype_family
from export.repository import list_families, remove_other_families, write_family
from export.revolver_family import revolver_family
from export.revolver_source import revolver_checkpoint
from export.scl_commands import add_commands as add_scl_commands
from export.sources import Weights
from export.tables import family_table, measure_table
from export.verification.driver import EMBEDDED, Gateway
from export.verification.measures import Measure

PANET_SIZE = "417"
CANET_SIZE = "321"
COMPACT_SIZE = "320"

app = typer.Typer(
    name="fewseg-export",
    help="From published checkpoints to the model repository that FewSeg and Triton serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)


class InitialWeights(StrEnum):
    """Weights that are no checkpoint of the method."""

    IMAGENET = "imagenet"
    SEEDED = "seeded"


class Verifiable(StrEnum):
    """Methods that there are golden vectors of."""

    PANET = "panet"
    REVOLVER = "revolver"
    SGONE = "sgone"
    CANET = "canet"
    HSNET = "hsnet"
    PFENET = "pfenet"
    REPRI = "repri"
    MMFORMER = "mmformer"
    SCL_CANET = "scl-canet"
    SCL_PFENET = "scl-pfenet"


class Engine(StrEnum):
    """What to serve the golden cases with."""

    EMBEDDED = "embedded"
    TRITON = "triton"
    NONE = "none"


@app.command()
def panet(
    out: Out,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Snapshot of the official training (.pth).")
    ] = None,
    weights: Annotated[
        InitialWeights | None,
        typer.Option(
            help="imagenet: the paper's PANet-init, from torchvision's VGG-16 (a file of it given "
            "by --checkpoint, else torch's cache or a download). seeded: random, for load tests."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What tasks call the model.")] = "panet",
    size: Size = PANET_SIZE,
    max_batch: MaxBatch = 8,
    force: Force = False,
    prune: Prune = False,
) -> None:
    """Exports PANet (Wang et al., ICCV 2019)."""
    with _told_plainly():
        if weights is InitialWeights.IMAGENET:
            source = sources.panet_imagenet(checkpoint)
        elif weights is InitialWeights.SEEDED and checkpoint is None:
            source = sources.panet_seeded()
        elif checkpoint is not None and weights is None:
            source = sources.panet_checkpoint(checkpoint)
        else:
            raise ExportError("Give --checkpoint FILE or --weights imagenet.")
        family = _family("panet", source, name, size, max_batch)
        _write(family, out, force=force, prune=prune)


@app.command()
def revolver(
    out: Out,
    checkpoint: Checkpoint,
    mean: Annotated[
        ShotMean,
        typer.Option(
            help="Over which shots the vectors of cofeat-late-lite-unshared are averaged. all: a "
            "shot that lacks an annotation counts as zero, as in the code. annotating: the others, "
            "as in the shared models."
        ),
    ] = ShotMean.ALL,
    name: Annotated[str, typer.Option(help="What tasks call the model.")] = "revolver",
    max_pixels: MaxPixels = NATIVE_PIXELS,
    max_batch: MaxBatch = 8,
    force: Force = False,
    prune: Prune = False,
) -> None:
    """Exports guided networks (Rakelly et al., 2018); the file tells which one."""
    with _told_plainly():
        source = revolver_checkpoint(checkpoint)
        family = revolver_family(
            alias=name,
            network=source.network,
            provenance=source.provenance,
            max_pixels=max_pixels,
            mean=mean,
            max_batch=max_batch,
        )
        _write(family, out, force=force, prune=prune)


@app.command()
def sgone(
    out: Out,
    checkpoint: Checkpoint,
    channels: Annotated[
        sgone_family.ChannelOrder,
        typer.Option(
            help="Order of colours that the weights were trained with. The official training reads "
            "bgr; rgb repeats the official test scripts."
        ),
    ] = sgone_family.ChannelOrder.BGR,
    merge: Annotated[
        sgone_family.ShotMerge,
        typer.Option(
            help="mean: of the shots' vectors, the official avg. any: a pass per shot, and the "
            "union of their masks, the official max."
        ),
    ] = sgone_family.ShotMerge.MEAN,
    name: Annotated[str, typer.Option(help="What tasks call the model.")] = "sgone",
    max_pixels: MaxPixels = NATIVE_PIXELS,
    max_batch: MaxBatch = 8,
    force: Force = False,
    prune: Prune = False,
) -> None:
    """Exports SG-One (Zhang et al., 2020)."""
    with _told_plainly():
        family = sgone_family.sgone_family(
            alias=name,
            network=sgone_family.sgone_checkpoint(checkpoint),
            provenance={"weights": checkpoint.name},
            max_pixels=max_pixels,
            order=channels,
            merge=merge,
            max_batch=max_batch,
        )
        _write(family, out, force=force, prune=prune)


@app.command()
def canet(
    out: Out,
    checkpoint: Checkpoint,
    iterations: Annotated[
        int, typer.Option(help="Passes over each query: the first mask and its refinements.")
    ] = canet_family.ITERATIONS,
    merge: Annotated[
        canet_family.ShotMerge,
        typer.Option(
            help="mean: of the shots' vectors. probability: a run per shot, and the mean of their "
            "probabilities. The released network was trained with one shot."
        ),
    ] = canet_family.ShotMerge.MEAN,
    multi_scale: Annotated[
        bool,
        typer.Option(
            "--multi-scale/--single-scale",
            help="Whether to average the query at 0.7, 1 and 1.3 times its size, as the paper "
            "does; with --size native only.",
        ),
    ] = False,
    name: Annotated[str, typer.Option(help="What tasks call the model.")] = "canet",
    size: NativeSize = CANET_SIZE,
    max_pixels: MaxPixels = NATIVE_PIXELS,
    max_batch: NativeMaxBatch = None,
    force: Force = False,
    prune: Prune = False,
) -> None:
    """Exports CANet (Zhang et al., CVPR 2019)."""
    with _told_plainly():
        family = canet_family.canet_family(
            alias=name,
            network=canet_family.canet_checkpoint(checkpoint),
            size=parse_native_size(size),
            provenance={"weights": checkpoint.name},
            iterations=iterations,
            merge=merge,
            multi_scale=multi_scale,
            max_pixels=max_pixels,
            max_batch=max_batch,
        )
        _write(family, out, force=force, prune=prune)


@app.command()
def compact(
    out: Out,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of the model; the project's own if left out.")
    ] = None,
    name: Annotated[str, typer.Option(help="What tasks call the model.")] = "compact",
    size: Size = COMPACT_SIZE,
    max_batch: MaxBatch = 8,
    force: Force = False,
    prune: Prune = False,
) -> None:
    """Exports FewSeg's own default model."""
    with _told_plainly():
        model, provenance = sources.compact_checkpoint(checkpoint)
        family = compact_family(
            alias=name,
            model=model,
            size=parse_size(size),
            provenance=provenance,
            max_batch=max_batch,
        )
        _write(family, out, force=force, prune=prune)


@app.command()
def verify(
    method: Annotated[Verifiable, typer.Argument(help="Which method.")],
    goldens: Annotated[
        Path, typer.Option(help="Folder of its golden vectors: cases.json, keys.json, *.npz.")
    ],
    engine: Annotated[
        Engine,
        typer.Option(
            help="What a gateway serves the cases with: embedded, or triton, which must serve "
            "--repository. none: graphs only."
        ),
    ] = Engine.EMBEDDED,
    repository: Annotated[
        Path | None,
        typer.Option(help="Where to write families while they are verified; else a temporary one."),
    ] = None,
    triton_address: Annotated[str, typer.Option(help="Of Triton's gRPC port.")] = "localhost:8001",
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case; may be given several times.")
    ] = None,
) -> None:
    """Compares torch, exported graphs and gateway with numbers made by the authors' own code."""
    from export.verification.canet import verify_canet
    from export.verification.hsnet import verify_hsnet
    from export.verification.mmformer import verify_mmformer
    from export.verification.panet import verify_panet
    from export.verification.pfenet import verify_pfenet
    from export.verification.repri import verify_repri
    from export.verification.revolver import verify_revolver
    from export.verification.scl_canet import verify_scl_canet
    from export.verification.scl_pfenet import verify_scl_pfenet
    from export.verification.sgone import verify_sgone

    verifiers = {
        Verifiable.PANET: verify_panet,
        Verifiable.REVOLVER: verify_revolver,
        Verifiable.SGONE: verify_sgone,
        Verifiable.CANET: verify_canet,
        Verifiable.HSNET: verify_hsnet,
        Verifiable.PFENET: verify_pfenet,
        Verifiable.REPRI: verify_repri,
        Verifiable.MMFORMER: verify_mmformer,
        Verifiable.SCL_CANET: verify_scl_canet,
        Verifiable.SCL_PFENET: verify_scl_pfenet,
    }
    gateways = {
        Engine.EMBEDDED: EMBEDDED,
        Engine.TRITON: Gateway(triton_address),
        Engine.NONE: None,
    }
    gateway = gateways[engine]
    with _told_plainly():
        if engine is Engine.TRITON and repository is None:
            raise ExportError("--engine triton needs --repository, the one that Triton serves.")
        with console.status("Exporting and running the golden cases ..."):
            verifier = verifiers[method]
            measures = verifier(goldens, names=case or (), gateway=gateway, repository=repository)
            found = list(measures)
        _report(found)


@app.command(name="list")
def list_command(
    repository: Annotated[Path, typer.Argument(help="A model repository.")],
) -> None:
    """Lists the families of a repository."""
    with _told_plainly():
        families = list_families(repository)
        console.print(family_table(families))
        if not all(family.complete for family in families):
            raise ExportError("Families that are not complete are not served; export them again.")


def _report(measures: Sequence[Measure]) -> None:
    """Prints comparisons; raises ``ExportError`` if one failed or was not run."""
    console.print(measure_table(measures))
    failed = [measure for measure in measures if not measure.passed]
    for measure in failed:
        console.print(f"{measure.case}, {measure.stage}, {measure.quantity}: {_blame(measure)}")
    if failed:
        raise ExportError(f"{len(failed)} of {len(measures)} comparisons failed or were not run.")
    console.print(f"All {len(measures)} comparisons are within what is allowed.")


def main() -> None:
    """Runs the command."""
    app()


@contextmanager
def _told_plainly() -> Iterator[None]:
    """Turns errors that are meant for people into one red line and exit status 1."""
    try:
        yield
    except ExportError as error:
        errors.print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _blame(measure: Measure) -> str:
    if measure.error is None:
        return f"not run: {escape(measure.reason)}"
    return f"{measure.error:.1e} where {measure.tolerance:.1e} is allowed"


def _family(method: str, source: Weights, name: str, size: str, max_batch: int) -> Family:
    return prototype_family(
        method=method,
        alias=name,
        trunk=source.trunk,
        size=parse_size(size),
        provenance=source.provenance,
        max_batch=max_batch,
    )


def _write(family: Family, out: Path, *, force: bool, prune: bool) -> None:
    with console.status(f"Exporting {family.name} ..."):
        written = write_family(family, out, force=force)
    state = "written to" if written.changed else "unchanged (--force replaces it) in"
    megabytes = f"{written.nbytes / 1e6:.1f} MB"
    console.print(f"{written.family} {state} {out} ({megabytes})", soft_wrap=True)
    if prune:
        for removed in remove_other_families(out, family):
            console.print(f"{removed} removed from {out}", soft_wrap=True)


add_dense_commands(app, _told_plainly, _write)
add_enriched_commands(app, _told_plainly, _write)
add_mixture_commands(app, _told_plainly, _write)
add_scl_commands(app, _told_plainly, _write)
add_commands(app, _told_plainly, console)
add_derived_commands(app, _told_plainly, console)
