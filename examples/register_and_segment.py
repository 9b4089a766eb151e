"""Register a task from one annotated photograph, then segment another one under it.

python examples/register_and_segment.py [--server localhost:50051] [--output coins.png]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse

from skimage import data

from fewseg import Annotation, Client, Points, Support, overlay


def main() -> None:
    """Six coins are clicked on; those of the rest of the photograph are found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--output", default="coins.png", help="where to write the picture")
    options = parser.parse_args()

    photograph = data.coins()
    annotated, other = photograph[:144, :184], photograph[:, 184:]
    centres = [(44, 54), (100, 56), (155, 51), (41, 124), (103, 126), (153, 127)]
    # Exhaustive: these are all the coins there, so that the rest of the picture is background.
    marks = Annotation([Points(centres, "coin", radius=18)], exhaustive=True)

    with Client(options.server) as client:
        task = client.register(["coin"], [Support(annotated, marks)], display_name="Coins", ttl=600)
        result = client.segment(task, other)

    (coin,) = result.classes
    print(f"{task.name} was answered by {result.family}")
    print(f"{coin.area} of {other.size} pixels are {coin.class_name}, score {coin.mean_score:.2f}")
    print(f"inside the server: {result.timings['total'] * 1000:.1f} ms")
    overlay(other, result).save(options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
