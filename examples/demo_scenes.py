"""What the demo segments: scikit-image's sample pictures, and marks that a person made on them.

Every scene annotates one picture, or one part of it, and asks for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from fewseg import BACKGROUND, Annotation, IndexMask, Points, Scribble

#: Pictures that ship inside scikit-image, so that the demo needs no network.
SAMPLES = Path(skimage.data.__file__).parent

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Correction:
    """A second look at an annotation.

    Attributes:
        marks: Painted over those that are there.
        says: What a person would say about them.
    """

    marks: Annotation
    says: str


@dataclass(frozen=True)
class Scene:
    """One task of the demo.

    Attributes:
        task_id: Of the task.
        title: For people.
        by: How the support is annotated.
        classes: In mask order.
        support: The annotated picture.
        annotation: Its marks.
        queries: What is segmented, by caption.
        correction: Made after the first look, if any.
    """

    task_id: str
    title: str
    by: str
    classes: tuple[str, ...]
    support: Picture
    annotation: Annotation
    queries: dict[str, Picture] = field(default_factory=dict)
    correction: Correction | None = None


def scenes() -> list[Scene]:
    """The demo's tasks."""
    return [coins(), motorcycle(), tissue()]


def coins() -> Scene:
    """One row of coins is painted; the others are found."""
    picture = _sample("coins.png")
    top, bottom = 92, 162
    painted = Image.new("L", (picture.shape[1], bottom - top))
    pen = ImageDraw.Draw(painted)
    for x, y, radius in [
        (45, 124, 21),
        (102, 126, 20),
        (154, 127, 20),
        (205, 124, 20),
        (271, 119, 25),
        (336, 125, 20),
    ]:
        pen.ellipse((x - radius, y - radius - top, x + radius, y + radius - top), fill=1)
    return Scene(
        "coins",
        "Greek coins",
        "a mask of six",
        ("coin",),
        picture[top:bottom],
        Annotation([IndexMask(np.asarray(painted), {1: "coin"})]),
        {"the row above": picture[:top], "the rows below": picture[bottom:]},
    )


def motorcycle() -> Scene:
    """Strokes on the left picture of a stereo pair; the right one is segmented."""
    machine = [
        [(185, 190), (270, 215), (330, 205), (460, 190)],
        [(130, 310), (150, 370), (200, 395), (260, 360)],
        [(200, 325), (300, 350), (380, 330), (450, 320), (440, 265)],
        [(530, 340), (560, 400), (620, 435), (670, 400), (650, 330)],
        [(545, 155), (500, 130), (500, 200), (520, 260), (570, 350)],
        [(560, 290), (620, 295)],
        [(262, 262), (310, 240), (350, 222), (440, 200), (468, 172)],
        [(215, 235), (250, 255), (275, 275)],
        [(350, 180), (420, 170), (470, 165)],
        [(345, 240), (400, 225), (450, 215)],
    ]
    room = [
        [(20, 430), (150, 460), (320, 470), (460, 450)],
        [(70, 150), (250, 140)],
        [(400, 100), (620, 110), (690, 150)],
        [(600, 220), (680, 250)],
        [(120, 60), (260, 60)],
        [(30, 330), (80, 280)],
    ]
    strokes = Annotation(
        [Scribble(line, "motorcycle", width=8) for line in machine]
        + [Scribble(line, BACKGROUND, width=8) for line in room]
    )
    return Scene(
        "motorcycle",
        "A motorcycle",
        "strokes on the left eye's view",
        ("motorcycle",),
        _sample("motorcycle_left.png"),
        strokes,
        {"the right eye's view": _sample("motorcycle_right.png")},
    )


def tissue() -> Scene:
    """Clicks on one half of a stained section; both classes are found in the other half."""
    picture = _sample("ihc.png")
    first = Annotation(
        [
            Points([(60, 120), (150, 60), (220, 150), (430, 100)], "gland", radius=4),
            Points([(490, 180)], "stroma", radius=4),
            Points([(325, 95)], BACKGROUND, radius=4),
        ]
    )
    more = Annotation(
        [
            Points([(420, 220)], "gland", radius=4),
            Points([(480, 60), (281, 185), (235, 250), (310, 250), (100, 235)], "stroma", radius=4),
            Points([(350, 150), (68, 5)], BACKGROUND, radius=4),
        ]
    )
    return Scene(
        "tissue",
        "Stained tissue",
        "six clicks on the upper half",
        ("gland", "stroma"),
        picture[:256],
        first,
        {"the lower half": picture[256:]},
        Correction(more, "eight more clicks"),
    )


def of_folder(folder: Path) -> Scene:
    """A task from a person's own photographs.

    The first picture with a mask beside it (``name.mask.png``, anything but
    black is the object) is the support. Without any, the middle of the first
    picture is clicked, which says "whatever is in the middle of this one".

    Raises:
        SystemExit: There is no such folder, it holds fewer than two pictures, or one
            of them cannot be read.
    """
    if not folder.is_dir():
        raise SystemExit(f"There is no folder {folder}.")
    endings = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in endings and not path.name.endswith(".mask.png")
    )
    if len(paths) < 2:
        raise SystemExit(f"{folder} holds {len(paths)} pictures; the demo needs two at least.")
    masked = [path for path in paths if path.with_suffix(".mask.png").exists()]
    support = masked[0] if masked else paths[0]
    picture = _read(support)
    if masked:
        painted = _read(support.with_suffix(".mask.png")).any(axis=-1)
        annotation = Annotation([IndexMask(painted.astype(np.uint8), {1: "object"})])
        by = f"the mask {support.with_suffix('.mask.png').name}"
    else:
        annotation = Annotation([Points(_middle(picture), "object", radius=6)])
        by = "clicks in the middle; paint name.mask.png for more"
    queries = {path.name: _read(path) for path in paths if path != support}
    return Scene(
        "own-pictures", f"Your own pictures ({support.name})", by, ("object",), picture,
        annotation, queries,
    )  # fmt: skip


def _middle(picture: Picture) -> Sequence[tuple[float, float]]:
    height, width = picture.shape[:2]
    return [(width * x, height * y) for x in (0.42, 0.5, 0.58) for y in (0.42, 0.5, 0.58)]


def _sample(name: str) -> Picture:
    return _read(SAMPLES / name)


def _read(path: Path) -> Picture:
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except OSError as error:
        raise SystemExit(f"{path} cannot be read as a picture: {error}") from None
