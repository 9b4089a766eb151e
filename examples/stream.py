"""Segment a stream of frames, such as those of a camera, over one connection.

python examples/stream.py [--server localhost:50051] [--frames 60]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from skimage import data

from fewseg import Annotation, Client, FewSegError, Points, Support

WIDTH = 184


def pan(photograph: NDArray[np.uint8], frames: int) -> Iterator[NDArray[np.uint8] | bytes]:
    """A window that wanders over a photograph; one frame arrives broken."""
    for number in range(frames):
        left = (photograph.shape[1] - WIDTH) * number // max(1, frames - 1)
        yield b"noise" if number == frames // 2 else photograph[:, left : left + WIDTH]


def main() -> None:
    """Coins are followed through a moving picture; a broken frame does not end the stream."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--frames", type=int, default=60, help="how many frames to send")
    options = parser.parse_args()

    photograph = data.coins()
    centres = [(44, 54), (100, 56), (155, 51), (41, 124), (103, 126), (153, 127)]
    marks = Annotation([Points(centres, "coin", radius=18)], exhaustive=True)

    with Client(options.server) as client:
        task = client.register(["coin"], [Support(photograph[:144, :WIDTH], marks)], ttl=600)
        started = time.perf_counter()
        # Pinned: the whole stream is answered by the task as it is now.
        answers = client.segment_stream(task, pan(photograph, options.frames), pinned=True)
        for number, answer in enumerate(answers):
            if isinstance(answer, FewSegError):
                print(f"frame {number}: {answer}")
            elif number % 10 == 0:
                (coin,) = answer.classes
                print(f"frame {number}: {coin.area} pixels of {coin.class_name}")
        rate = options.frames / (time.perf_counter() - started)
    print(f"{rate:.0f} frames per second")


if __name__ == "__main__":
    main()
