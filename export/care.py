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


class Accelerator(StrEnum):
    """What Triton's ONNX Runtime backend may run graphs with."""

    TENSORRT = "tensorrt"
    OPENVINO = "openvino"
    NONE = "none"


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
        engine: Annotated[
            Accelerator,
            typer.Option(
                "--with", help="tensorrt on GPUs, openvino on processors, none to undo either."
            ),
        ],
        precision: Annotated[
            Precision,
            typer.Option(help="fp16: features alone, as guide and decode need more digits."),
        ] = Precision.FP32,
        engine_cache: Annotated[
            str,
            typer.Option(help="Folder of the serving machine that keeps built TensorRT engines."),
        ] = "/var/cache/fewseg-tensorrt",
        ways: Annotated[int, typer.Option(min=1, help="Most ways of a TensorRT engine.")] = 8,
        shots: Annotated[int, typer.Option(min=1, help="Most shots of a TensorRT engine.")] = 5,
    ) -> None:
        """Has Triton's C++ backend run the graphs of a repository with TensorRT or OpenVINO."""
        half = precision is Precision.FP16
        plans: dict[Accelerator, Plan] = {
            Accelerator.TENSORRT: TensorRt(half, engine_cache, ways=ways, shots=shots),
            Accelerator.OPENVINO: OpenVino(),
            Accelerator.NONE: Plain(),
        }
        with told_plainly():
            for model in accelerate(repository, plans[engine]):
                console.print(f"{model} is set to {engine.value}", highlight=False, soft_wrap=True)
