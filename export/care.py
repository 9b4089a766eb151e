# SPDX-License-Identifier: Apache-2.0
"""The commands of `fewseg-export` that look after a repository which is written already."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from export.accelerate import OpenVino, Plain, Plan, TensorRt, accelerate
from export.check import check
from export.errors import ExportError


class Precision(StrEnum):
    """Of the numbers inside an engine."""

    FP32 = "fp32"
    FP16 = "fp16"


def add_commands(
    app: typer.Typer, told_plainly: Callable[[], AbstractContextManager[None]], console: Console
) -> None:
    """Adds the commands.

    Args:
        app: To which program.
        told_plainly: Turns errors that are meant for people into a line and an exit status.
        console: Where they print.
    """

    @app.command(name="check")
    def check_command(
        repository: Annotated[Path, typer.Argument(help="A model repository.")],
    ) -> None:
        """Finds what Triton 24.10 or the gateway would refuse, without running anything."""
        with told_plainly():
            problems = check(repository)
            for problem in problems:
                console.print(escape(problem), highlight=False, soft_wrap=True)
            if problems:
                raise ExportError(f"{len(problems)} problems are in {repository}.")
            console.print(f"Nothing is wrong in {repository}.", soft_wrap=True)

    @app.command(name="accelerate")
    def accelerate_command(
        repository: Annotated[Path, typer.Argument(help="A model repository; its configs change.")],
        tensorrt: Annotated[
            Precision | None,
            typer.Option(
                help="For GPUs, in this precision. fp16: features alone, as guide and decode need "
                "more digits."
            ),
        ] = None,
        openvino: Annotated[bool, typer.Option("--openvino", help="For processors.")] = False,
        plain: Annotated[bool, typer.Option("--plain", help="Undoes either.")] = False,
        engine_cache: Annotated[
            str,
            typer.Option(help="Folder of the serving machine that keeps built TensorRT engines."),
        ] = "/var/cache/fewseg-tensorrt",
        ways: Annotated[int, typer.Option(min=1, help="Most ways of a TensorRT engine.")] = 8,
        shots: Annotated[int, typer.Option(min=1, help="Most shots of a TensorRT engine.")] = 5,
    ) -> None:
        """Has Triton's C++ backend run the graphs of a repository with TensorRT or OpenVINO."""
        plans: list[tuple[str, Plan]] = []
        if tensorrt is not None:
            half = tensorrt is Precision.FP16
            plans.append(("tensorrt", TensorRt(half, engine_cache, ways=ways, shots=shots)))
        if openvino:
            plans.append(("openvino", OpenVino()))
        if plain:
            plans.append(("none", Plain()))
        with told_plainly():
            if len(plans) != 1:
                raise ExportError("Give one of --tensorrt fp32|fp16, --openvino and --plain.")
            ((engine, plan),) = plans
            outcome = accelerate(repository, plan)
            lines = [
                f"{model} is set to {engine}"
                for model in outcome.changed
                if model not in outcome.plain
            ]
            lines += [f"{model} stays plain: {engine} cannot run it" for model in outcome.plain]
            for line in lines:
                console.print(line, highlight=False, soft_wrap=True)
