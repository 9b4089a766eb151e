"""FewSeg from end to end: starts a server, registers tasks over gRPC, segments, corrects, ends.

Writes an overlay per picture and one contact sheet into the output folder, and
prints where the time went and what the caches saved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from demo_scenes import Scene, of_folder, scenes
from demo_sheet import Row, Tile, marked, sheet
from PIL import Image
from rich.console import Console
from rich.table import Table

from fewseg import Annotation, Client, SegmentResult, Support, Task, overlay

_START_SECONDS = 60
_STOP_SECONDS = 30


@dataclass
class Diary:
    """What happened, for the table."""

    lines: list[tuple[str, str, float, str]] = field(default_factory=list)

    def note(self, task: str, step: str, seconds: float, remark: str) -> None:
        """Adds a line: task, step, milliseconds, what was at hand."""
        self.lines.append((task, step, seconds * 1e3, remark))

    def table(self) -> Table:
        """All lines."""
        table = Table(title="What each call took, as the client saw it")
        for heading in ("task", "call", "ms", "not computed again"):
            table.add_column(heading, justify="right" if heading == "ms" else "left")
        for task, step, milliseconds, remark in self.lines:
            table.add_row(task, step, f"{milliseconds:.1f}", remark)
        return table


@contextmanager
def server() -> Iterator[str]:
    """A server of its own on a free port, with a fresh store; yields its address."""
    with tempfile.TemporaryDirectory(prefix="fewseg-demo-") as folder:
        command = [
            str(Path(sys.executable).parent / "fewseg-serve"),
            *("--port", "0", "--metrics-port", "0", "--log-format", "json"),
            *("--store-path", str(Path(folder) / "demo.db")),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            yield f"127.0.0.1:{_announced_port(process)}"
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)
            if process.stderr is not None:
                process.stderr.close()


def _announced_port(process: subprocess.Popen[str]) -> int:
    """Reads the server's log until it says that it serves; keeps the pipe empty after that."""
    assert process.stderr is not None
    deadline = time.monotonic() + _START_SECONDS
    seen = []
    for line in process.stderr:
        seen.append(line)
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("event") == "serving":
            threading.Thread(target=lambda: [None for _ in process.stderr or ()]).start()
            return int(entry["port"])
        if time.monotonic() > deadline:
            break
    raise SystemExit("The server did not start:\n" + "".join(seen))


def play(scene: Scene, client: Client, diary: Diary, output: Path) -> Row:
    """Registers a scene's task, segments its pictures, makes its correction."""
    started = time.perf_counter()
    task = client.register(
        list(scene.classes), [Support(scene.support, scene.annotation)], task_id=scene.task_id
    )
    diary.note(scene.task_id, "register", time.perf_counter() - started, "")
    tiles = [Tile(marked(scene.support, scene.annotation, scene.classes), f"given: {scene.by}")]
    first = segment_all(scene, task, client, diary, "segment")
    final = first
    if scene.correction is not None:
        final = correct(scene, task, client, diary)
        tiles += look(scene, first, f"{scene.task_id}-before", output, "before the correction")
        corrected = Annotation(
            [*scene.annotation.marks, *scene.correction.marks.marks]  # type: ignore[misc]
        )
        tiles.append(
            Tile(marked(scene.support, corrected, scene.classes), f"+ {scene.correction.says}")
        )
    tiles += look(scene, final, scene.task_id, output, "found")
    save(tiles[0].picture, output / f"{scene.task_id}-support.png")
    remark = f"{', '.join(scene.classes)}; guidance of {task.guidance_bytes} bytes"
    return Row(scene.title, remark, tiles)


def segment_all(
    scene: Scene, task: Task, client: Client, diary: Diary, step: str
) -> dict[str, SegmentResult]:
    """Segments every query of a scene, one call each."""
    results = {}
    for caption, picture in scene.queries.items():
        started = time.perf_counter()
        results[caption] = result = client.segment(task, picture)
        diary.note(scene.task_id, step, time.perf_counter() - started, saved(result))
    return results


def saved(result: SegmentResult) -> str:
    """What the caches spared this call."""
    parts = []
    if result.reuse.guidance:
        parts.append("guidance of the task")
    if result.reuse.features:
        parts.append("features of the image")
    return ", ".join(parts)


def correct(scene: Scene, task: Task, client: Client, diary: Diary) -> dict[str, SegmentResult]:
    """Paints the correction over the annotation, and looks again."""
    assert scene.correction is not None
    started = time.perf_counter()
    support_id = task.supports[0].id
    client.annotate(task, support_id, scene.correction.marks, extend=True)
    diary.note(
        scene.task_id, "correct", time.perf_counter() - started, "features of the support image"
    )
    return segment_all(scene, task, client, diary, "segment again")


def look(
    scene: Scene, results: dict[str, SegmentResult], name: str, output: Path, word: str
) -> list[Tile]:
    """Overlays of all results, written to files and returned for the sheet."""
    tiles = []
    for number, (caption, result) in enumerate(results.items(), 1):
        picture = overlay(scene.queries[caption], result, legend=len(scene.classes) > 1)
        save(picture, output / f"{name}-{number}.png")
        share = np.count_nonzero(result.mask) / result.mask.size
        tiles.append(Tile(picture, f"{word}: {caption}, {share:.0%} labelled"))
    return tiles


def save(picture: Image.Image, path: Path) -> None:
    """Writes a PNG."""
    picture.save(path, optimize=True)


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--images", type=Path, help="a folder of your own photographs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    played = [of_folder(arguments.images)] if arguments.images else scenes()
    diary = Diary()
    with server() as address, Client(address) as client:
        model = client.models()[0]
        console.print(f"Serving [bold]{model.family}[/] on {address}.")
        rows = [play(scene, client, diary, arguments.output) for scene in played]
        second_task(played[0], client, diary)
    sheet(rows).save(arguments.output / "contact-sheet.png", optimize=True)
    console.print(diary.table())
    console.print(f"Look at [bold]{arguments.output / 'contact-sheet.png'}[/].")


def second_task(scene: Scene, client: Client, diary: Diary) -> None:
    """The same picture under a second task: its features are there already."""
    task = client.register(list(scene.classes), [Support(scene.support, scene.annotation)])
    caption, picture = next(iter(scene.queries.items()))
    started = time.perf_counter()
    result = client.segment(task, picture)
    diary.note("a second task", f"segment {caption}", time.perf_counter() - started, saved(result))


if __name__ == "__main__":
    main()
