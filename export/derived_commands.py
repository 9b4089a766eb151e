# SPDX-License-Identifier: Apache-2.0
"""The commands of `fewseg-export` that make a family from another one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from export.care import Precision
from export.half import Agreement, halve
from export.plans import PlanSettings, build_plans
from export.repository import Written

Repository = Annotated[Path, typer.Argument(help="The model repository that holds the family.")]
FamilyName = Annotated[str, typer.Option("--family", help="Its name, or its alias.")]
Out = Annotated[
    Path | None, typer.Option(help="Model repository to write to; the same if left out.")
]
Alias = Annotated[
    str, typer.Option("--name", help="What tasks call the new model; as before if left out.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the family if it is there already.")]


def add_commands(
    app: typer.Typer, told_plainly: Callable[[], AbstractContextManager[None]], console: Console
) -> None:
    """Adds the commands.

    Args:
        app: To which program.
        told_plainly: Turns errors that are meant for people into a line and an exit status.
        console: Where they print.
    """

    @app.command(name="half")
    def half_command(
        repository: Repository,
        family: FamilyName,
        out: Out = None,
        name: Alias = "",
        force: Force = False,
    ) -> None:
        """Makes a family whose feature graphs compute in float16, if its masks stay the same."""
        with told_plainly():
            with console.status(f"Converting {family}, and comparing it with float32 ..."):
                made = halve(
                    repository,
                    family,
                    out=out,
                    alias=name,
                    force=force,
                    report=lambda found: console.print(_agreement_table(found)),
                )
            _tell(console, made.written, out or repository)

    @app.command(name="tensorrt")
    def tensorrt_command(
        repository: Repository,
        family: FamilyName,
        precision: Annotated[
            Precision,
            typer.Option(help="fp16: features alone, as guide and decode need more digits."),
        ] = Precision.FP32,
        ways: Annotated[int, typer.Option(min=1, help="Most ways of a task.")] = 8,
        shots: Annotated[int, typer.Option(min=1, help="Most shots of a task.")] = 5,
        workspace: Annotated[
            int, typer.Option(min=1, help="Memory for building and running a layer, in MiB.")
        ] = 2048,
        timing_cache: Annotated[
            Path | None,
            typer.Option(help="File that keeps timings of kernels from one build to the next."),
        ] = None,
        out: Out = None,
        name: Alias = "",
        force: Force = False,
    ) -> None:
        """Builds TensorRT plans of a family, on a machine with an NVIDIA GPU and TensorRT."""
        settings = PlanSettings(
            half=precision is Precision.FP16,
            ways=ways,
            shots=shots,
            workspace_mib=workspace,
            timing_cache=timing_cache,
        )
        with told_plainly():
            with console.status(f"Building plans of {family}; this takes minutes ..."):
                written = build_plans(
                    repository, family, settings, out=out, alias=name, force=force
                )
            _tell(console, written, out or repository)


def _tell(console: Console, written: Written, out: Path) -> None:
    state = "written to" if written.changed else "unchanged (--force replaces it) in"
    megabytes = f"{written.nbytes / 1e6:.1f} MB"
    console.print(f"{written.family} {state} {out} ({megabytes})", soft_wrap=True)


def _agreement_table(agreements: list[Agreement]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("float16 against float32", no_wrap=True)
    table.add_column("error", justify="right")
    table.add_column("allowed", justify="right")
    for one in agreements:
        colour = "green" if one.passed else "red"
        error = f"[{colour}]{one.error:.1e}[/{colour}]"
        table.add_row(one.quantity, error, f"{one.tolerance:.0e}")
    return table
