"""Weak annotation: how much a mask, a scribble, a box or a click is worth.

python examples/weak_annotation.py [--server localhost:50051]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse

import numpy as np
from numpy.typing import NDArray
from pictures import deepest, overlap, patchwork

from fewseg import BACKGROUND, Box, Client, Points, RunLengthMask, Scribble, Support
from fewseg.annotations import Label, Mark


def stroke(region: NDArray[np.bool_], label: Label) -> Scribble:
    """A horizontal stroke through the middle of a region."""
    (x, y), depth = deepest(region)
    return Scribble([(x - 0.7 * depth, y), (x + 0.7 * depth, y)], label, width=6)


def box_around(region: NDArray[np.bool_], label: Label) -> Box:
    """The bounding box of a region."""
    rows, columns = np.nonzero(region)
    return Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, label)


def annotations(brick: NDArray[np.bool_]) -> dict[str, list[Mark]]:
    """The same picture, annotated with less and less care."""
    point, depth = deepest(brick)
    return {
        "a dense mask": [RunLengthMask(brick, "brick")],
        "two scribbles": [stroke(brick, "brick"), stroke(~brick, BACKGROUND)],
        "a box": [box_around(brick, "brick")],
        "a click": [Points(point, "brick", radius=depth / 2)],
    }


def main() -> None:
    """One support, annotated in four ways; every time the same pictures are segmented."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--queries", type=int, default=8, help="pictures to segment")
    options = parser.parse_args()

    support = patchwork(("brick",), seed=0)
    queries = [patchwork(("brick",), seed) for seed in range(1, 1 + options.queries)]
    with Client(options.server) as client:
        task = None
        for name, marks in annotations(support.labels == 1).items():
            if task is None:
                task = client.register(["brick"], [Support(support.pixels, marks, id="s")], ttl=600)
            else:
                task = client.annotate(task, "s", marks)
            answers = client.segment_many(task, [query.pixels for query in queries])
            overlaps = [
                overlap(answer.mask == 1, query.labels == 1)
                for answer, query in zip(answers, queries, strict=True)
            ]
            background = "inferred" if task.background_inferred else "given"
            print(f"{name}: overlap {np.mean(overlaps):.0%}, background {background}")


if __name__ == "__main__":
    main()
