"""Few-shot semantic segmentation: one and five shots, one and two classes (ways).

python examples/semantic.py [--server localhost:50051] [--data FOLDER --classes bear,zebra]

A folder holds `images/ID.jpg` and `masks/CLASS/ID.png` (white on black).
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
import itertools
from pathlib import Path

import numpy as np
from pictures import Labelled, patchwork, photographs

from fewseg import Client, IndexMask, Support

SHOTS = (1, 5)


def sample(classes: tuple[str, ...], count: int, folder: Path | None) -> list[Labelled]:
    """So many pictures, in which the classes take turns or are all to be seen."""
    if folder is None:
        return [patchwork(classes, seed) for seed in range(count)]
    turns = zip(*(photographs(folder, classes, name) for name in classes), strict=False)
    return list(itertools.islice(itertools.chain.from_iterable(turns), count))


def mean_overlap(
    client: Client, classes: tuple[str, ...], supports: list[Labelled], queries: list[Labelled]
) -> float:
    """Registers a task, segments the queries, and compares: the mean over classes."""
    values = dict(enumerate(classes, 1))
    task = client.register(
        list(classes),
        [Support(shot.pixels, IndexMask(shot.labels, values)) for shot in supports],
        ttl=600,
    )
    shared, united = np.zeros(len(classes)), np.zeros(len(classes))
    answers = client.segment_many(task, [query.pixels for query in queries])
    for query, answer in zip(queries, answers, strict=True):
        for value in values:
            found, truth = answer.mask == value, query.labels == value
            shared[value - 1] += (found & truth).sum()
            united[value - 1] += (found | truth).sum()
    return float(np.mean(shared / np.maximum(united, 1)))


def main() -> None:
    """What was annotated in a few pictures is found in others."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--data", type=Path, help="annotated photographs of your own")
    parser.add_argument("--classes", default="brick,gravel", help="which two")
    parser.add_argument("--queries", type=int, default=8, help="pictures to segment")
    options = parser.parse_args()

    names = tuple(options.classes.split(","))
    with Client(options.server) as client:
        for classes in (*((name,) for name in names), names):
            most = max(SHOTS) * len(classes)
            pictures = sample(classes, most + options.queries, options.data)
            for shots in SHOTS:
                supports = pictures[: shots * len(classes)] if options.data else pictures[:shots]
                result = mean_overlap(client, classes, supports, pictures[most:])
                setting = f"{len(classes)} way, {shots} shot, {' and '.join(classes)}"
                print(f"{setting}: overlap {result:.0%}")


if __name__ == "__main__":
    main()
