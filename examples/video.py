"""Video object segmentation: the first frame is annotated, the others are streamed.

python examples/video.py [--server localhost:50051] [--film FOLDER] [--output film]

A folder holds `frames` and, of the same names, `masks` (white on black) to compare with.
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
from collections import deque
from pathlib import Path

import numpy as np
from pictures import Labelled, film, film_of_folder, overlap, shown

from fewseg import Client, FewSegError, Support, overlay


def main() -> None:
    """The task is registered once; no frame pays for the annotation again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--film", type=Path, help="a film of your own")
    parser.add_argument("--frames", type=int, default=48, help="how long the built-in film is")
    parser.add_argument("--output", default="film", help="how the names of the pictures begin")
    options = parser.parse_args()

    frames = film_of_folder(options.film) if options.film else film(options.frames)
    first = next(frames)
    overlaps = []
    with Client(options.server) as client:
        task = client.register(["object"], [Support(first.pixels, first.labels)], ttl=600)
        waiting: deque[Labelled] = deque()
        # Pinned: the whole film is answered by the task as it is now.
        answers = client.segment_stream(task, shown(frames, waiting), pinned=True)
        for number, answer in enumerate(answers, 1):
            frame = waiting.popleft()
            if isinstance(answer, FewSegError):
                print(f"frame {number}: {answer}")
                continue
            overlaps.append(overlap(answer.mask == 1, frame.labels == 1))
            if number % 10 == 0:
                print(f"frame {number}: {overlaps[-1]:.0%}")
                overlay(frame.pixels, answer).save(f"{options.output}-{number:04d}.png")
    print(f"{len(overlaps)} frames, mean overlap with the truth {np.mean(overlaps):.0%}")


if __name__ == "__main__":
    main()
