# SPDX-License-Identifier: Apache-2.0
"""Learning curves as pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

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
