# SPDX-License-Identifier: Apache-2.0
"""Learning curves and results as pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Mapping[str, Any]
"""What `fewseg --json evaluate` prints: `mean_iou`, and `per_class`, in per cent."""

ASIDE = frozenset({"step", "seconds", "progress", "size"})
"""What a point of a curve holds beside losses and overlaps."""


def draw_curves(curves: Sequence[Path], target: Path) -> None:
    """Draws one panel per curve into `<stage>.png`, the value of each loss over minutes.

    Args:
        curves: Files that the stages wrote beside their checkpoints.
        target: Folder to write to.
    """
    import matplotlib.pyplot as plt

    target.mkdir(parents=True, exist_ok=True)
    for path in curves:
        points: list[dict[str, float]] = json.loads(path.read_text())
        names = sorted({name for point in points for name in point} - ASIDE)
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for name in names:
            held = [point for point in points if name in point]
            minutes = [point["seconds"] / 60 for point in held]
            axes.plot(minutes, [point[name] for point in held], label=name, linewidth=1)
        axes.set(xlabel="minutes", title=path.stem, ylim=(0, None))
        axes.legend(ncols=2, fontsize="small")
        figure.savefig(target / f"{path.parent.name}-{path.stem}.png", dpi=110)
        plt.close(figure)


def draw_scores(files: Sequence[Path], target: Path) -> Path:
    """Draws results into `<folder of the first>-scores.png`, and returns its path.

    Args:
        files: `<set>-<shots>.json`, each as `fewseg --json evaluate` printed it.
        target: Folder to write to.

    Raises:
        ValueError: A name does not end in a number of shots.
    """
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{files[0].resolve().parent.name}-scores.png"
    scores_figure(read_scores(files)).savefig(path, dpi=80)
    return path


def read_scores(files: Sequence[Path]) -> dict[str, dict[int, Scores]]:
    """Returns results by set and number of shots.

    Raises:
        ValueError: A name does not end in a number of shots.
    """
    results: dict[str, dict[int, Scores]] = {}
    for path in files:
        name, _, shots = path.stem.rpartition("-")
        if not name or not shots.isdecimal():
            raise ValueError(f"{path.name} is not called <set>-<shots>.json.")
        results.setdefault(name, {})[int(shots)] = json.loads(path.read_text())
    return results


def scores_figure(results: Mapping[str, Mapping[int, Scores]]) -> Figure:
    """A panel per set, in two columns: a bar per class and number of shots, means as lines."""
    from matplotlib.figure import Figure

    columns: tuple[list[str], list[str]] = ([], [])
    lengths = [0, 0]
    for name, by_shots in results.items():
        shorter = int(lengths[1] < lengths[0])
        columns[shorter].append(name)
        lengths[shorter] += _rows(by_shots)
    figure = Figure(figsize=(11, 1 + 0.23 * max(lengths)), layout="constrained")
    parts: Any = figure.subfigures(1, 2)
    for column, part in zip(columns, parts, strict=True):
        if not column:
            continue
        heights = [_rows(results[name]) for name in column]
        panels = part.subplots(len(column), squeeze=False, height_ratios=heights)[:, 0]
        for name, axes in zip(column, panels, strict=True):
            _draw_set(axes, name, results[name])
    return figure


def _rows(by_shots: Mapping[int, Scores]) -> int:
    """How tall a panel is, in classes: three more for what stands above and below the bars."""
    return 3 + max(len(scores["per_class"]) for scores in by_shots.values())


def _draw_set(axes: Axes, name: str, by_shots: Mapping[int, Scores]) -> None:
    """Bars of one set, the class that the most shots find best on top."""
    shots = sorted(by_shots)
    best: Mapping[str, float] = by_shots[shots[-1]]["per_class"]
    classes = sorted(best, key=lambda kind: best[kind])
    thickness = 0.8 / len(shots)
    for place, count in enumerate(shots):
        scores = by_shots[count]
        colour, label = f"C{place}", f"{count} shot{'s' if count > 1 else ''}"
        rows = [row + thickness * ((len(shots) - 1) / 2 - place) for row in range(len(classes))]
        widths = [scores["per_class"][kind] for kind in classes]
        axes.barh(rows, widths, thickness, color=colour, label=label)
        mean = scores["mean_iou"]
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1, label=f"mean {mean:.1f}")
    axes.set_yticks(range(len(classes)), [kind.replace("_", " ") for kind in classes], fontsize=8)
    axes.set(title=name, xlim=(0, 100), ylim=(-0.6, len(classes) - 0.4))
    axes.legend(fontsize="small", loc="lower right")
