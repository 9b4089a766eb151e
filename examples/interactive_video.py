"""Interactive video: clicks on any frame change the task while the stream runs.

python examples/interactive_video.py [--server localhost:50051] [--film FOLDER]

A folder holds `frames` and, of the same names, `masks`. Whoever watches is played by the masks:
every few frames they click where the answer is most wrong, and once they go back to the start.
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
from collections import deque
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pictures import Labelled, deepest, film, film_of_folder, overlap, shown

from fewseg import BACKGROUND, Client, FewSegError, Points, Support


def click(region: NDArray[np.bool_], label: str) -> Points:
    """A click deep inside a region, as wide as half the way to its border."""
    point, depth = deepest(region)
    return Points(point, label, radius=depth / 2)


def worst(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Points:
    """A click on what is missing or on what is too much, whichever goes deeper."""
    missing, surplus = truth & ~found, found & ~truth
    if deepest(missing)[1] > deepest(surplus)[1]:
        return click(missing, "object")
    return click(surplus, BACKGROUND)


def main() -> None:
    """A click is a support of its own, or one more mark on a frame that is one already."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--film", type=Path, help="a film of your own")
    parser.add_argument("--frames", type=int, default=48, help="how long the built-in film is")
    parser.add_argument("--every", type=int, default=8, help="frames between two clicks")
    options = parser.parse_args()

    frames = film_of_folder(options.film) if options.film else film(options.frames)
    first = next(frames)
    truth = first.labels == 1
    clicks = [click(truth, "object"), click(~truth, BACKGROUND)]
    waiting: deque[Labelled] = deque()
    with Client(options.server) as client:
        task = client.register(["object"], [Support(first.pixels, clicks, id="frame-0")], ttl=600)
        revisions = [task.etag]
        # Each frame is answered by the newest revision; a small window lets clicks show soon.
        answers = client.segment_stream(task, shown(frames, waiting), window=2)
        for number, answer in enumerate(answers, 1):
            frame = waiting.popleft()
            if isinstance(answer, FewSegError):
                print(f"frame {number}: {answer}")
                continue
            if answer.etag not in revisions:
                revisions.append(answer.etag)
            found, truth = answer.mask == 1, frame.labels == 1
            told = f"frame {number}: {overlap(found, truth):.0%} by revision {len(revisions)}"
            if number % options.every == 0:
                mark = worst(found, truth)
                client.add_supports(task, [Support(frame.pixels, mark, id=f"frame-{number}")])
                told += f"; a click: {'too much' if mark.class_name is BACKGROUND else 'missing'}"
            elif number == options.every + options.every // 2:
                start = client.segment(task, support_id="frame-0").mask == 1
                client.annotate(task, "frame-0", worst(start, first.labels == 1), extend=True)
                told += "; one more click on the first frame"
            print(told)


if __name__ == "__main__":
    main()
