"""Annotate click by click, and see after each one what the task makes of its own image.

python examples/interactive.py [--server localhost:50051] [--output cat]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
import time

from skimage import data

from fewseg import BACKGROUND, Client, Points, Support, overlay


def main() -> None:
    """A photograph is sent once; every further click costs milliseconds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--output", default="cat", help="how the names of the pictures begin")
    options = parser.parse_args()

    cat = data.chelsea()
    first, *further = [
        Points((250, 100), "cat", radius=10),
        Points((100, 60), "cat", radius=10),
        Points([(420, 150), (20, 40)], BACKGROUND, radius=10),
        Points([(165, 110), (320, 130)], "cat", radius=6),
    ]
    with Client(options.server) as client:
        task = client.register(["cat"], [Support(cat, first, id="photo")], ttl=600)
        for number in range(1 + len(further)):
            started = time.perf_counter()
            if number > 0:
                task = client.annotate(task, "photo", further[number - 1], extend=True)
            # The image is named, not sent: its feature maps are still there.
            result = client.segment(task, support_id="photo")
            took = time.perf_counter() - started

            share = result.classes[0].area / result.mask.size
            background = "inferred" if result.background_inferred else "given"
            features = "reused" if result.reuse.features else "computed"
            print(
                f"click {number + 1}: {share:.0%} cat, background {background},"
                f" features {features}, {took:.3f} s"
            )
            overlay(cat, result).save(f"{options.output}-{number + 1}.png")


if __name__ == "__main__":
    main()
