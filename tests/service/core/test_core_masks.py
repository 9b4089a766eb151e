from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from service.core.masks import encode, voc_palette
from service.core.run_lengths import decode_run_lengths
from service.core.types import DecidedMask, MaskFormat, Size

label_maps = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)


def decided(labels: np.ndarray, ways: int = 3) -> DecidedMask:
    return DecidedMask(labels, np.zeros(ways, np.int64), (None,) * ways, np.zeros(ways))


@given(labels=label_maps)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_every_format_holds_the_labels(labels: np.ndarray) -> None:
    mask = decided(labels)
    size = Size(*labels.shape)
    png = encode(mask, 3, MaskFormat.PNG)
    assert (png.size, png.format) == (size, MaskFormat.PNG)
    assert isinstance(png.content, bytes)
    with Image.open(BytesIO(png.content)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
    raw = encode(mask, 3, MaskFormat.RAW)
    assert raw.content == labels.tobytes()
    runs = encode(mask, 3, MaskFormat.COCO_RLE)
    assert len(runs.content) == 3
    for way, run_lengths in enumerate(runs.content, start=1):
        np.testing.assert_array_equal(decode_run_lengths(run_lengths), labels == way)


@pytest.mark.parametrize(("ways", "bits"), [(1, 1), (2, 2), (3, 2), (4, 4), (15, 4), (16, 8)])
def test_a_png_spends_as_few_bits_as_the_classes_need(ways: int, bits: int) -> None:
    labels = np.arange(20, dtype=np.uint8).reshape(4, 5) % (ways + 1)
    png = encode(decided(labels, ways), ways, MaskFormat.PNG).content
    assert isinstance(png, bytes)
    assert png[24] == bits
    with Image.open(BytesIO(png)) as image:
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_colours_are_those_of_pascal_voc() -> None:
    palette = np.frombuffer(voc_palette(22), dtype=np.uint8).reshape(-1, 3).tolist()
    assert palette[0] == [0, 0, 0]
    assert palette[1] == [128, 0, 0]  # aeroplane
    assert palette[2] == [0, 128, 0]  # bicycle
    assert palette[15] == [192, 128, 128]  # person
    assert palette[20] == [0, 64, 128]  # tv monitor
    assert len({tuple(colour) for colour in palette}) == 22
