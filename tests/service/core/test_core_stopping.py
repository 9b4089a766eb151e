from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from io import BytesIO
from typing import TypeVar

import numpy as np
import pytest
from core_family import multiway, resize
from PIL import Image

from service.core import decision, index_masks
from service.core.annotations import check
from service.core.decision import decide
from service.core.errors import DeadlineExceededError
from service.core.family import PostTarget
from service.core.index_masks import read_numbers
from service.core.limits import Limits
from service.core.masks import encode
from service.core.planes import label_plane
from service.core.postchain import PostChain
from service.core.run_lengths import decode_run_lengths, encode_run_lengths
from service.core.stopping import StoppedError, checkpoint, stop_when
from service.core.types import (
    Annotation,
    AnnotationInput,
    DecidedMask,
    IndexMask,
    Mark,
    MaskFormat,
    Points,
    Size,
)

Result = TypeVar("Result")
SIDE = Size(40, 50)
FAMILY = multiway()


def working(work: Callable[[], Result], abandoned: threading.Event) -> Result:
    """Runs work as a worker thread does, in a context of its own."""

    def begin() -> Result:
        stop_when(abandoned.is_set)
        return work()

    return contextvars.copy_context().run(begin)


def given_up(work: Callable[[], object]) -> None:
    """Checks that work runs to its end if it is wanted, and stops if it is not."""
    abandoned = threading.Event()
    working(work, abandoned)
    abandoned.set()
    with pytest.raises(StoppedError):
        working(work, abandoned)
    work()


def test_only_the_work_that_was_given_up_stops() -> None:
    given_up(checkpoint)


def test_who_gave_up_hears_of_a_deadline() -> None:
    assert isinstance(StoppedError(), DeadlineExceededError)
    assert StoppedError().reason == "DEADLINE_EXCEEDED"


def dense_marks(count: int) -> tuple[Mark, ...]:
    file = BytesIO()
    Image.fromarray(np.eye(40, 50, dtype=np.uint8)).save(file, "PNG")
    return (Mark(IndexMask(file.getvalue(), {1: "cup"}), None),) * count


@pytest.mark.parametrize("marks", [dense_marks(2), (Mark(Points(((1, 1),)), "cup"),) * 2])
def test_marks_are_neither_checked_nor_painted_for_nobody(marks: tuple[Mark, ...]) -> None:
    given_up(lambda: check(AnnotationInput(marks), SIDE, ("cup",), Limits()))
    annotation = Annotation(marks, False, ("cup",))
    given_up(lambda: label_plane(annotation, SIDE, SIDE, ("cup",), FAMILY))


def test_an_annotation_is_left_after_the_mark_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = threading.Event()
    read: list[bytes] = []

    def read_and_give_up(png: bytes, image: Size) -> np.ndarray:
        read.append(png)
        if len(read) == 3:
            abandoned.set()
        return read_numbers(png, image)

    monkeypatch.setattr(index_masks, "read_numbers", read_and_give_up)
    annotation = AnnotationInput(dense_marks(100))
    with pytest.raises(StoppedError):
        working(lambda: check(annotation, SIDE, ("cup",), Limits()), abandoned)
    assert len(read) == 3


def test_run_lengths_are_not_read_for_nobody() -> None:
    mask = encode_run_lengths(np.eye(40, 50, dtype=np.uint8))
    given_up(lambda: decode_run_lengths(mask))


def test_a_mask_is_left_after_the_band_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "_BAND_BYTES", 4 * 50)
    chain = PostChain((resize(PostTarget.OUTPUT),))
    axes = chain.axes(Size(9, 9), Size(9, 9), SIDE, SIDE)
    logits = np.random.default_rng(0).normal(size=(2, 1, 9, 9)).astype(np.float32)
    abandoned = threading.Event()
    bands: list[int] = []
    upsample = decision.upsample

    def upsample_and_give_up(*args: object) -> object:
        bands.append(1)
        if len(bands) == 5:
            abandoned.set()
        return upsample(*args)

    monkeypatch.setattr(decision, "upsample", upsample_and_give_up)
    with pytest.raises(StoppedError):
        working(lambda: decide(logits, axes, family=FAMILY, ways=1), abandoned)
    assert len(bands) == 5


def test_classes_are_not_encoded_for_nobody() -> None:
    mask = DecidedMask(np.zeros((4, 5), np.uint8), np.zeros(2, np.int64), (None,) * 2, np.zeros(2))
    given_up(lambda: encode(mask, 2, MaskFormat.COCO_RLE))
