# SPDX-License-Identifier: Apache-2.0
"""Tables for the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from export.repository import Listed
from export.verification.measures import Measure


def family_table(families: Iterable[Listed]) -> Table:
    """One row per family."""
    table = Table()
    table.add_column("family", no_wrap=True)
    for heading in ("alias", "method", "input", "created", "complete"):
        table.add_column(heading)
    table.add_column("MB", justify="right")
    for family in families:
        table.add_row(
            family.family,
            family.alias,
            family.method,
            family.input_size,
            family.created,
            "yes" if family.complete else "[red]no[/red]",
            f"{family.nbytes / 1e6:.1f}",
        )
    return table


def measure_table(measures: Sequence[Measure]) -> Table:
    """One row per stage and quantity: its worst error over the cases, and what is allowed."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("stage", "quantity"):
        table.add_column(heading, no_wrap=True)
    for heading in ("error", "allowed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("cases", justify="right")
    table.add_column("")
    for group in _by_quantity(measures):
        worst = max(group, key=_badness)
        table.add_row(
            worst.stage,
            worst.quantity,
            "-" if worst.error is None else f"{worst.error:.1e}",
            f"{worst.tolerance:.1e}",
            str(len(group)),
            _verdict(worst),
        )
    return table


def _by_quantity(measures: Sequence[Measure]) -> list[list[Measure]]:
    groups: dict[tuple[str, str], list[Measure]] = {}
    for measure in measures:
        groups.setdefault((measure.stage, measure.quantity), []).append(measure)
    return list(groups.values())


def _badness(measure: Measure) -> tuple[bool, float]:
    """Orders by what a reader must see first: not run, then far over what is allowed."""
    if measure.error is None:
        return True, 0.0
    return False, measure.error / measure.tolerance if measure.tolerance else measure.error


def _verdict(measure: Measure) -> str:
    if measure.error is None:
        return "[yellow]not run[/yellow]"
    return "[green]ok[/green]" if measure.passed else "[red]out[/red]"
