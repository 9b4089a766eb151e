"""Guide a class from instances: each support shows one coin, and all coins are found.

python examples/from_instances.py [--server localhost:50051] [--output instances.png]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
from collections.abc import Iterator

import numpy as np
from pictures import coins, deepest, overlap
from scipy import ndimage

from fewseg import BACKGROUND, Annotation, Client, Points, RunLengthMask, Support, overlay

ANNOTATED_ROWS = 144
MARGIN = 24


def instances() -> Iterator[Support]:
    """Each coin of the upper rows, cut out with what is around it."""
    photograph = coins()
    labelled, _ = ndimage.label(photograph.labels[:ANNOTATED_ROWS])
    for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), 1):
        here = np.s_[
            max(0, rows.start - MARGIN) : min(ANNOTATED_ROWS, rows.stop + MARGIN),
            max(0, columns.start - MARGIN) : columns.stop + MARGIN,
        ]
        one = labelled[here] == number
        if one.sum() < 400:
            continue  # a scratch, no coin
        point, depth = deepest(labelled[here] == 0)
        ground = Points(point, BACKGROUND, radius=0.7 * depth)
        # Not exhaustive: the neighbours are coins too, though nobody marked them here.
        marks = Annotation([RunLengthMask(one, "coin"), ground], exhaustive=False)
        yield Support(photograph.pixels[here], marks, id=f"coin-{number}")


def main() -> None:
    """The more instances, the better the class is known."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--output", default="instances.png", help="where to write the picture")
    options = parser.parse_args()

    photograph = coins()
    query, truth = photograph.pixels[ANNOTATED_ROWS:], photograph.labels[ANNOTATED_ROWS:] == 1
    first, *others = instances()
    with Client(options.server) as client:
        task = client.register(["coin"], [first], ttl=600)
        for more in ([], others[:2], others[2:]):
            if more:
                task = client.add_supports(task, more)
            result = client.segment(task, query)
            found = overlap(result.mask == 1, truth)
            print(f"{task.support_count} instances: overlap {found:.0%} with all coins")
    overlay(query, result).save(options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
