"""What gateway and plain server add to Triton, measured for a moment with a real one."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console
from rich.table import Table

from loadtests.bench.stand import REPOSITORY
from loadtests.triton_bench.many_callers import many_callers
from loadtests.triton_bench.one_caller import one_caller
from loadtests.triton_bench.stand import setup
from triton_local.environment import Environment


def figures(table: Table) -> dict[str, list[float]]:
    """Rows of a table that hold numbers."""
    out = StringIO()
    Console(file=out, width=200).print(table)
    rows = [line.split("\u2502")[1:-1] for line in out.getvalue().splitlines()]
    found = {
        row[0].strip(): [re.search(r"[0-9.]+", cell) for cell in row[1:]] for row in rows if row
    }
    return {title: [float(cell[0]) for cell in cells if cell] for title, cells in found.items()}


def test_both_servers_are_measured_beside_a_direct_call(triton_environment: Environment) -> None:
    with setup(REPOSITORY, triton_environment) as made:
        alone = figures(one_caller(made, 3))
        together, batches = map(figures, many_callers(made, 3.0))

    for name in ("gateway", "direct", "plain server", "floor"):
        assert alone[name][0] > 0
    assert len(together["answers/s"]) == 2
    assert min(together["answers/s"]) > 0
    assert min(together["the same by CPU time alone"]) > 0
    queries, executions, by_execution = batches["query_decoder"]
    assert queries >= executions > 0
    assert by_execution >= 1
