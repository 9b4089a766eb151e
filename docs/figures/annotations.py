"""Draws the pictures of docs/annotations.md: python docs/figures/annotations.py."""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage import data

from service.core.annotations import check
from service.core.family import (
    ClassHandling,
    Decision,
    ImageResize,
    InputDtype,
    MaskResize,
    ModelFamily,
    ScoreMeaning,
    VoidRule,
)
from service.core.limits import Limits
from service.core.planes import VOID, inferred_background, label_plane, planes
from service.core.types import (
    BACKGROUND,
    AnnotationInput,
    Box,
    IndexMask,
    Mark,
    Points,
    Polygon,
    Scribble,
    Size,
)

FOLDER = Path(__file__).parents[1] / "images"
CLASSES = ("coin",)
#: Coarse, so that single plane pixels can be seen.
PLANE = Size(50, 128)
ZOOM = 2
COLOURS = 256
COIN, NOTHING, NEITHER = (255, 90, 60), (60, 140, 255), (250, 210, 60)

FAMILY = ModelFamily(
    name="figure-00000000",
    alias="figure",
    method="panet",
    digest="0" * 64,
    created=datetime(2026, 1, 1, tzinfo=UTC),
    graphs=frozenset(),
    input_size=PLANE,
    input_dtype=InputDtype.UINT8,
    image_resize=ImageResize.PIL_BILINEAR,
    mask_resize=MaskResize.PIL_NEAREST,
    class_handling=ClassHandling.MULTIWAY,
    needs_background=True,
    void=VoidRule.UNKNOWN,
    guidance=(),
    post_chain=(),
    decision=Decision.ARGMAX,
    threshold=0.0,
    score=ScoreMeaning.SOFTMAX,
    way_buckets=(1,),
    shot_buckets=(1,),
)

OUTLINE = tuple(
    (216 + 26 * np.cos(angle), 51 + 24 * np.sin(angle))
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False)
)


def main() -> None:
    """Writes the pictures."""
    photograph = data.coins()[:150]
    shapes = (
        Mark(Points(((44, 54),)), "coin"),
        Mark(Points(((100, 57),), radius=10), "coin"),
        Mark(Scribble(((138, 42), (155, 62), (172, 42)), width=5), "coin"),
        Mark(Polygon((OUTLINE,)), "coin"),
        Mark(Box(256, 34, 296, 73), "coin"),
        Mark(Scribble(((8, 88), (120, 84), (376, 90)), width=0), BACKGROUND),
    )
    save("marks", outlined(photograph, shapes), shaded(photograph, labels_of(photograph, shapes)))

    dense = (Mark(IndexMask(index_mask(photograph), {1: "coin"}, (255,)), None),)
    save(
        "exhaustive",
        shaded(photograph, labels_of(photograph, dense)),
        shaded(photograph, labels_of(photograph, dense, exhaustive=False)),
    )

    save(
        "inferred",
        *(
            shaded(photograph, with_inferred_background(labels_of(photograph, marks)))
            for marks in (shapes[:1], shapes[3:4])
        ),
    )


def labels_of(
    photograph: NDArray[np.uint8], marks: tuple[Mark, ...], exhaustive: bool | None = None
) -> NDArray[np.int16]:
    """The label plane that the service makes of marks."""
    image = Size(*photograph.shape)
    annotation = check(AnnotationInput(marks, exhaustive), image, CLASSES, Limits())
    return label_plane(annotation, image, PLANE, CLASSES, FAMILY)


def with_inferred_background(labels: NDArray[np.int16]) -> NDArray[np.int16]:
    """Labels with the background that is inferred from them."""
    inferred = inferred_background(planes(labels, 1, {1}, FAMILY))
    return np.where(inferred > 0, 0, labels).astype(np.int16)


def index_mask(photograph: NDArray[np.uint8]) -> bytes:
    """Two of the coins as numbers: 1 inside, 255 along the rim, 0 elsewhere."""
    rows, columns = np.indices(photograph.shape)
    numbers = np.zeros(photograph.shape, dtype=np.uint8)
    for x, y, across, down in ((216, 51, 24, 22), (335, 43, 30, 28)):
        distance = np.hypot((columns - x) / across, (rows - y) / down)
        numbers[distance < 1.15] = 255
        numbers[distance < 0.9] = 1
    file = BytesIO()
    Image.fromarray(numbers).save(file, "PNG")
    return file.getvalue()


def enlarged(pixels: NDArray[np.uint8], photograph: NDArray[np.uint8]) -> Image.Image:
    """Pixels without smoothing at ZOOM times the photograph's size."""
    height, width = photograph.shape
    return Image.fromarray(pixels).resize((width * ZOOM, height * ZOOM), Image.Resampling.NEAREST)


def outlined(photograph: NDArray[np.uint8], marks: tuple[Mark, ...]) -> Image.Image:
    """The photograph with marks as the annotator drew them."""
    picture = enlarged(photograph, photograph).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for mark in marks:
        colour = NOTHING if mark.class_name == BACKGROUND else COIN
        match mark.geometry:
            case Points(points=points, radius=radius):
                for x, y in points:
                    draw.circle(
                        (x * ZOOM, y * ZOOM), max(radius * ZOOM, 3), outline=colour, width=2
                    )
            case Scribble(vertices=vertices, width=width):
                path = [(x * ZOOM, y * ZOOM) for x, y in vertices]
                draw.line(path, fill=colour, width=max(1, round(width * ZOOM)), joint="curve")
            case Polygon(rings=rings):
                for ring in rings:
                    draw.polygon([(x * ZOOM, y * ZOOM) for x, y in ring], outline=colour, width=2)
            case Box() as box:
                corners = (box.x_min, box.y_min, box.x_max, box.y_max)
                draw.rectangle([edge * ZOOM for edge in corners], outline=colour, width=2)
    return picture


def shaded(photograph: NDArray[np.uint8], labels: NDArray[np.int16]) -> Image.Image:
    """The label plane over the photograph; what is unlabelled stays grey."""
    picture = enlarged(photograph, photograph).convert("RGB")
    for value, colour in ((1, COIN), (0, NOTHING), (VOID, NEITHER)):
        where = enlarged(((labels == value) * np.uint8(150)).astype(np.uint8), photograph)
        picture.paste(colour, mask=where)
    return picture


def save(name: str, *panels: Image.Image) -> None:
    """Writes panels one above the other."""
    gap = 6
    width, height = panels[0].size
    picture = Image.new("RGB", (width, (height + gap) * len(panels) - gap), "white")
    for index, panel in enumerate(panels):
        picture.paste(panel, (0, index * (height + gap)))
    reduced = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    reduced.save(FOLDER / f"annotation-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
