"""Runs the rows, prints them, keeps them, and brings the document up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from loadtests.bench.document import check, update
from loadtests.bench.gateway import annotating, gateway_overhead, registering, second_task, shots
from loadtests.bench.load import overload, throughput
from loadtests.bench.peers import TARGET, WHAT, peers
from loadtests.bench.rows import Row, RowError, unmeasured
from loadtests.bench.stand import Stand, family_name, open_stand
from loadtests.bench.state import memory, start
from loadtests.results import machine
from loadtests.servers import ServerError

#: Cores that others may keep busy before the figures are not to be trusted.
_QUIET = 0.1


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run of the suite found.

    Attributes:
        created: RFC 3339.
        family: The model family measured.
        engine: Of the server.
        machine: What it ran on.
        busy_cores: Cores that other processes kept busy right before.
        seconds: How long the suite took.
        rows: The table.
    """

    created: str
    family: str
    engine: str
    machine: dict[str, str]
    busy_cores: float
    seconds: float
    rows: list[Row]


_WITH_SERVER: dict[str, Callable[[Stand], Row]] = {
    "overhead": gateway_overhead,
    "throughput": throughput,
    "shots": shots,
    "registering": registering,
    "annotating": annotating,
    "second-task": second_task,
    "overload": overload,
    "peers": peers,
}
_ON_THEIR_OWN: dict[str, Callable[[str], Row]] = {"memory": memory, "start": start}
#: What a row and its target are called where nothing is measured, if more than its name is known.
_PROMISES = {"peers": (WHAT, TARGET)}
_ORDER = (
    "overhead",
    "throughput",
    "shots",
    "registering",
    "annotating",
    "second-task",
    "overload",
    "memory",
    "start",
    "peers",
)


def run_suite(
    *,
    engine: str,
    output: Path,
    document: Path | None,
    only: Sequence[str],
    console: Console,
) -> Suite:
    """Measures the rows of the table.

    Args:
        engine: Of the servers that are started.
        output: Folder for ``bench.json``.
        document: Markdown file whose table is replaced; None for none.
        only: Names of rows; empty for all. Not together with a document.
        console: Prints.

    Raises:
        RowError: There is no such row, or the document would lose rows.
        DocumentError: The document has no place for the table.
        ServerError: A server does not start.
    """
    chosen = chosen_rows(only, document)
    if document is not None:
        check(document)
    began = time.monotonic()
    busy = _busy_cores()
    if busy > _QUIET:
        console.print(
            f"Other processes keep {busy:.1f} cores busy: figures will be worse than they are."
        )
    rows: dict[str, Row] = {}
    with_server = [name for name in chosen if name in _WITH_SERVER]
    if with_server:
        with open_stand(engine) as stand:
            for name in with_server:
                rows[name] = _measured(console, name, partial(_WITH_SERVER[name], stand))
    for name in chosen:
        if name in _ON_THEIR_OWN:
            rows[name] = _measured(console, name, partial(_ON_THEIR_OWN[name], engine))
    suite = Suite(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        family=family_name(),
        engine=engine,
        machine=machine(),
        busy_cores=busy,
        seconds=time.monotonic() - began,
        rows=[rows[name] for name in chosen],
    )
    _keep(suite, output)
    print_table(suite, console)
    if document is not None:
        update(document, suite.rows, _provenance(suite))
    return suite


def chosen_rows(only: Sequence[str], document: Path | None) -> list[str]:
    """Names of the rows to measure, in their order.

    Args:
        only: Those that were asked for; empty for all.
        document: Whose table will be replaced; None for none.

    Raises:
        RowError: There is no such row, or the document would lose rows.
    """
    unknown = [name for name in only if name not in _ORDER]
    if unknown:
        raise RowError(f"there is no row {', '.join(unknown)}; there are {', '.join(_ORDER)}")
    chosen = [name for name in _ORDER if not only or name in only]
    if document is not None and len(chosen) < len(_ORDER):
        raise RowError(f"the table of {document} would lose the rows that are not measured")
    return chosen


def _measured(console: Console, name: str, measure: Callable[[], Row]) -> Row:
    began = time.monotonic()
    try:
        row = measure()
    except ServerError as error:
        what, target = _PROMISES.get(name, (name, "-"))
        row = unmeasured(name, what, target, str(error)[-300:])
    console.print(f"{row.what}: {row.measured}  [{time.monotonic() - began:.0f} s]", markup=False)
    return row


def _busy_cores() -> float:
    return float(psutil.cpu_percent(interval=2.0)) / 100.0 * (psutil.cpu_count() or 1)


def _keep(suite: Suite, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(suite), indent=1)
    (folder / "bench.json").write_bytes(content)


def print_table(suite: Suite, console: Console) -> None:
    """Prints the table, misses included."""
    table = Table("what", "target", "floor", "measured", "", show_lines=True)
    for row in suite.rows:
        table.add_row(row.what, row.target, row.floor, row.measured, verdict(row))
    console.print(table)
    for row in suite.rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", markup=False)
    met = sum(row.met is True for row in suite.rows)
    console.print(f"{met} of {len(suite.rows)} met, in {suite.seconds:.0f} s.")


def verdict(row: Row) -> str:
    """Whether the target was met, in a word."""
    return {True: "met", False: "missed", None: "not measured"}[row.met]


def _provenance(suite: Suite) -> str:
    return (
        f"Measured {suite.created} with `{suite.family}`, engine {suite.engine}, on "
        f"{suite.machine['cores']} cores ({suite.machine['processor']}), Python "
        f"{suite.machine['python']}; before it began, other processes kept "
        f"{suite.busy_cores:.1f} cores busy. The suite took {suite.seconds / 60:.1f} minutes."
    )
