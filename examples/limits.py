"""Where the default model fails, and what helps: each case goes wrong first and is then mended.

python examples/limits.py [--server localhost:50051] [--output limits]
"""

# ruff: noqa: T201 - an example talks to whoever runs it
import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_sheet import Row, Tile, marked, sheet
from numpy.typing import NDArray
from pictures import Labelled, coins, deepest, film, overlap, patchwork
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import data, filters

from fewseg import BACKGROUND, Annotation, Client, IndexMask, Points, Support, overlay
from fewseg.annotations import Mark

CRUMB = 60
"""Pixels; what is smaller is no thing of its own."""

CUT = (255, 214, 10)
"""Colour of the lines along which a picture was cut."""


@dataclass(frozen=True)
class Attempt:
    """One way to put the task.

    Attributes:
        says: What a person does.
        marks: On the support; none of them for its true mask.
        tiles: Into how many rows and columns both pictures are cut first.
    """

    says: str
    marks: tuple[Mark, ...] = ()
    tiles: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Case:
    """A weakness of the model.

    Attributes:
        title: For people.
        why: What goes wrong.
        support, query: Class 1 is what is looked for.
        fails, helps: The way that goes wrong, and the better one.
        things: How many things the query shows, where that is the point.
    """

    title: str
    why: str
    support: Labelled
    query: Labelled
    fails: Attempt
    helps: Attempt
    things: int = 0


def cases() -> list[Case]:
    """All weaknesses that scikit-image's pictures can show."""
    return [thin_strokes(), touching_things(), mere_texture(), one_click(), forgotten_background()]


def thin_strokes() -> Case:
    """Letters whose strokes are two or three pixels wide."""
    page = data.page()
    ink = (page < filters.threshold_local(page, 31, offset=15)).astype(np.uint8)
    left, right = np.s_[:, :192], np.s_[:, 192:]
    return Case(
        "Thin strokes",
        "under four pixels at 320 x 320 they run together: words are found, not letters",
        Labelled(page[left], ink[left]),
        Labelled(page[right], ink[right]),
        Attempt("a mask of the ink"),
        Attempt("both cut into nine tiles", tiles=(3, 3)),
    )


def touching_things() -> Case:
    """Rows of coins that nearly touch."""
    return Case(
        "Neighbours",
        "things that nearly touch get bridges",
        *halves_of_coins(),
        Attempt("a mask of twelve coins"),
        Attempt("both cut into six tiles", tiles=(2, 3)),
        things=12,
    )


def mere_texture() -> Case:
    """A horse that is told from the field by its texture alone."""
    first, *_, last = film(11)
    return Case(
        "Texture alone",
        "a figure of bricks on grass is seen in part: what was learnt are things, not textures",
        first,
        last,
        Attempt("a mask of the first frame"),
        Attempt("both cut into nine tiles", tiles=(3, 3)),
    )


def one_click() -> Case:
    """A single click says neither how different coins may be nor what is not one."""
    clicks = [(44, 54), (100, 56), (155, 51), (271, 119), (336, 125)]
    return Case(
        "One click",
        "one coin does not stand for all, and the background is only guessed",
        *halves_of_coins(),
        Attempt("one click", (Points(clicks[:1], "it", radius=3),)),
        Attempt(
            "five clicks, and one beside them",
            (Points(clicks, "it", radius=3), Points([(190, 88)], BACKGROUND, radius=3)),
        ),
    )


def forgotten_background() -> Case:
    """Bricks, and a background of grass and gravel."""
    support = patchwork(("brick", "gravel"), seed=0)
    brick, grass, gravel = (
        Points([deepest(support.labels == value)[0]], label, radius=3)
        for value, label in ((1, "it"), (0, BACKGROUND), (2, BACKGROUND))
    )
    return Case(
        "Several backgrounds",
        "bricks are wanted; nobody pointed at gravel, and it is taken for them",
        support,
        patchwork(("brick", "gravel"), seed=2),
        Attempt("a click on bricks, one on grass", (brick, grass)),
        Attempt("a third click, on gravel", (brick, grass, gravel)),
    )


def halves_of_coins() -> tuple[Labelled, Labelled]:
    """The upper two rows of coins, and the lower two."""
    whole, row = coins(), 150
    return (
        Labelled(whole.pixels[:row], whole.labels[:row]),
        Labelled(whole.pixels[row:], whole.labels[row:]),
    )


def cut(picture: NDArray[np.uint8], tiles: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """The tiles of a picture, row by row."""
    rows = np.array_split(picture, tiles[0], axis=0)
    return [tile for row in rows for tile in np.array_split(row, tiles[1], axis=1)]


def join(masks: list[NDArray[np.uint8]], tiles: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of a picture from those of its tiles."""
    columns = tiles[1]
    rows = [masks[start : start + columns] for start in range(0, len(masks), columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def segment(client: Client, case: Case, attempt: Attempt) -> NDArray[np.uint8]:
    """What is found when the task is put in this way, uint8 [H, W]."""
    pieces = zip(
        cut(case.support.pixels, attempt.tiles),
        cut(case.support.labels, attempt.tiles),
        strict=True,
    )
    supports = [Support(pixels, annotation(attempt, labels)) for pixels, labels in pieces]
    task = client.register(["it"], supports, ttl=600)
    answers = client.segment_many(task, cut(case.query.pixels, attempt.tiles))
    return join([answer.mask for answer in answers], attempt.tiles)


def annotation(attempt: Attempt, labels: NDArray[np.uint8]) -> Annotation:
    """The marks of an attempt on a support, or on a tile of it."""
    return Annotation(attempt.marks or [IndexMask((labels == 1).astype(np.uint8), {1: "it"})])


def try_out(client: Client, case: Case, attempt: Attempt) -> list[Tile]:
    """Prints how an attempt went; returns its two pictures."""
    found = segment(client, case, attempt)
    told = f"overlap {overlap(found == 1, case.query.labels == 1):.0%}"
    if case.things:
        pieces = np.bincount(ndimage.label(found)[0].ravel())[1:]
        told += f", {(pieces > CRUMB).sum()} pieces for {case.things} coins"
    print(f"{case.title}, {attempt.says}: {told}")
    given = marked(case.support.pixels, annotation(attempt, case.support.labels), ["it"])
    answer = overlay(case.query.pixels, found, ["it"], legend=False)
    return [
        Tile(with_cuts(given, attempt.tiles), attempt.says),
        Tile(with_cuts(answer, attempt.tiles), told),
    ]


def with_cuts(picture: Image.Image, tiles: tuple[int, int]) -> Image.Image:
    """The picture with the lines along which it was cut."""
    pen = ImageDraw.Draw(picture)
    rows, columns = tiles
    for y in (picture.height * row // rows for row in range(1, rows)):
        pen.line([(0, y), (picture.width, y)], CUT)
    for x in (picture.width * column // columns for column in range(1, columns)):
        pen.line([(x, 0), (x, picture.height)], CUT)
    return picture


def main() -> None:
    """Tries each case in both ways, and puts all pictures on one sheet."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--server", default=":embedded:", help="address of a FewSeg server")
    parser.add_argument("--output", type=Path, default=Path("limits"), help="folder to write")
    options = parser.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    with Client(options.server) as client:
        rows = [
            Row(
                case.title,
                case.why,
                [
                    tile
                    for attempt in (case.fails, case.helps)
                    for tile in try_out(client, case, attempt)
                ],
            )
            for case in cases()
        ]
    path = options.output / "contact-sheet.jpg"
    sheet(rows).save(path, quality=80, optimize=True)
    print(f"Look at {path}.")


if __name__ == "__main__":
    main()
