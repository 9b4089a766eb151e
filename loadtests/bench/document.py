"""The table in a document, between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtests.bench.rows import Row

BEGIN = "<!-- make bench writes from here -->"
END = "<!-- to here -->"
_VERDICTS = {True: "met", False: "**missed**", None: "not measured"}


class DocumentError(Exception):
    """The document has no place for the table."""


def check(document: Path) -> None:
    """Makes sure that there is a place for the table, before it is measured for minutes.

    Raises:
        DocumentError: The document cannot be read, or the marks are missing.
    """
    _parts(document)


def update(document: Path, rows: Sequence[Row], provenance: str) -> None:
    """Replaces what stands between the marks of a Markdown file.

    Raises:
        DocumentError: The marks are missing.
    """
    before, after = _parts(document)
    document.write_text(f"{before}{BEGIN}\n\n{provenance}\n\n{table(rows)}\n{END}{after}")


def _parts(document: Path) -> tuple[str, str]:
    """What stands before the table, and after it."""
    try:
        text = document.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{document} cannot be read: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DocumentError(f"{document} lacks the lines {BEGIN} and {END}")
    return before, after


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown: the table, and then the numbers behind it."""
    lines = ["| what | target | floor | measured | |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.target} | {row.floor} | {row.measured} | {_VERDICTS[row.met]} |"
        for row in rows
    ]
    lines += ["", "Behind the table, in milliseconds unless said otherwise:", ""]
    lines += [f"- {row.name}: {_figures(row)}.{' ' + row.note if row.note else ''}" for row in rows]
    return "\n".join(lines) + "\n"


def _figures(row: Row) -> str:
    if not row.figures:
        return "not measured"
    return "; ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
