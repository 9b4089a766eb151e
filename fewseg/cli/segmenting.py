"""The command that segments images into a folder."""

from __future__ import annotations

import glob
import json as jsonlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from fewseg._requests import OutputSize
from fewseg.cli.session import (
    EXIT_SERVER_ERROR,
    JsonFlag,
    Session,
    one_line,
    plain,
    plain_error,
    stderr,
    stdout,
)
from fewseg.errors import FewSegError
from fewseg.overlay import overlay as paint
from fewseg.results import SegmentResult

_SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

_NAMED_SIZES: Final[dict[str, OutputSize]] = {"original": "original", "network": "network"}


class MaskFormat(StrEnum):
    """In which form masks cross the wire and are written."""

    PNG = "png"
    RLE = "rle"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one image, without its pixels."""

    image: Path
    files: dict[str, Path] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: FewSegError | None = None

    def told(self) -> dict[str, Any]:
        """What JSON output says of it."""
        problem = {} if self.error is None else {"error": plain_error(self.error)}
        return {"image": self.image, **self.files, **self.facts, **problem}


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(segment)


def segment(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="Task id, or tenants/TENANT/tasks/TASK.")],
    images: Annotated[list[str], typer.Argument(help="Files, folders or quoted patterns.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; made if missing.")],
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write NAME_overlay.png as well.")
    ] = False,
    format: Annotated[
        MaskFormat, typer.Option(help="png: NAME.png; rle: NAME.json; raw: NAME.npy.")
    ] = MaskFormat.PNG,
    size: Annotated[str, typer.Option(help="original, network or HEIGHTxWIDTH.")] = "original",
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Do not follow changes of the task meanwhile.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Segments images and writes their masks to a folder.

    Goes on after an image that cannot be segmented, and exits with 1 in the end.
    """
    session = Session.of(context, json)
    paths = list(_expanded(images))
    if not paths:
        raise typer.BadParameter("There are no images there.")
    wanted = _size_of(size)
    out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with session.client() as client:
        answers = client.segment_stream(
            task, paths, format=format.value, size=wanted, pinned=pinned
        )
        bar, line = session.progress("Segmenting", len(paths))
        with bar:
            for path, stem, answer in zip(paths, _stems(paths), answers, strict=True):
                outcome = _outcome(path, answer, out / stem, overlay)
                if session.json:
                    session.tell(outcome.told(), "")
                outcomes.append(outcome)
                bar.advance(line)
    if not session.json:
        stdout().print(_table(outcomes))
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(EXIT_SERVER_ERROR)


def _outcome(
    image: Path, answer: SegmentResult | FewSegError, target: Path, overlay: bool
) -> _Outcome:
    if isinstance(answer, FewSegError):
        stderr().print(Text(f"{image}: {one_line(answer)}", style="red"))
        return _Outcome(image, error=answer)
    files = {"mask": _write_mask(answer, target)}
    if overlay:
        files["overlay"] = target.with_name(f"{target.name}_overlay.png")
        paint(image, answer).save(files["overlay"], compress_level=1)
    facts = {
        "size": answer.mask.shape,
        "classes": answer.classes,
        "family": answer.family,
        "etag": answer.etag,
        "background_inferred": answer.background_inferred,
        "timings": answer.timings,
    }
    return _Outcome(image, files, facts)


def _write_mask(result: SegmentResult, target: Path) -> Path:
    if result.png is not None:
        path = target.with_name(f"{target.name}.png")
        path.write_bytes(result.png)
    elif result.run_lengths is not None:
        path = target.with_name(f"{target.name}.json")
        masks = [
            {"class": found.class_name, **runs}
            for found, runs in zip(result.classes, result.run_lengths, strict=True)
        ]
        path.write_text(jsonlib.dumps(plain(masks)) + "\n")
    else:
        path = target.with_name(f"{target.name}.npy")
        np.save(path, result.mask)
    return path


def _expanded(images: Sequence[str]) -> Iterator[Path]:
    """Files as they are named, the pictures of folders, and what patterns match; in order."""
    for name in images:
        path = Path(name)
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        elif glob.has_magic(name) and not path.exists():
            yield from sorted(Path(found) for found in glob.glob(name, recursive=True))
        else:
            yield path


def _stems(paths: Sequence[Path]) -> Iterator[str]:
    """Names for the answers: those of the images, numbered where they meet."""
    taken: set[str] = set()
    for path in paths:
        stem, number = path.stem, 2
        while stem in taken:
            stem, number = f"{path.stem}-{number}", number + 1
        taken.add(stem)
        yield stem


def _size_of(text: str) -> OutputSize:
    if text in _NAMED_SIZES:
        return _NAMED_SIZES[text]
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise typer.BadParameter(f"--size is original, network or HEIGHTxWIDTH, not {text!r}.")
    return int(match[1]), int(match[2])


def _table(outcomes: Sequence[_Outcome]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("IMAGE", "CLASS", "AREA", "SHARE", "SCORE", "TIME"):
        table.add_column(heading, justify="left" if heading in ("IMAGE", "CLASS") else "right")
    for outcome in outcomes:
        if outcome.error is not None:
            table.add_row(str(outcome.image), Text("failed", "red"), "", "", "", "")
            continue
        seconds = f"{outcome.facts['timings'].get('total', 0.0) * 1000:.0f} ms"
        height, width = outcome.facts["size"]
        for row, found in enumerate(outcome.facts["classes"]):
            table.add_row(
                str(outcome.image) if row == 0 else "",
                found.class_name,
                f"{found.area:,}",
                f"{found.area / (height * width):.1%}",
                f"{found.mean_score:.2f}" if found.area else "",
                seconds if row == 0 else "",
            )
    return table
