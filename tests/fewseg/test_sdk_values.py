"""Annotations, images and errors to and from the wire."""

import io

import numpy as np
import pytest
from fake_fewseg_server import status
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from fewseg import (
    BACKGROUND,
    Annotation,
    Box,
    Client,
    FewSegError,
    FieldViolation,
    IndexMask,
    InternalError,
    InvalidArgument,
    Points,
    Polygon,
    RunLengthMask,
    Scribble,
)
from fewseg._answers import segmentation_of
from fewseg._channel import start_embedded
from fewseg._marks import annotation_message
from fewseg.errors import FailedPrecondition, error_of_status
from fewseg.images import to_array, to_message
from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import types_pb2


def only_mark(annotation, classes=("coin",)):
    (mark,) = annotation_message(annotation, classes).marks
    return mark


def decoded(runs):
    return coco.decode({"size": [runs.height, runs.width], "counts": runs.compressed}) != 0


@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(deadline=None, max_examples=60)
def test_a_mask_array_survives_its_run_lengths(mask):
    np.testing.assert_array_equal(decoded(only_mark(mask).run_length_mask), mask)
    as_bytes = mask.astype(np.uint8) * 255
    np.testing.assert_array_equal(decoded(only_mark(as_bytes).run_length_mask), mask)


def test_a_mask_file_stands_for_the_only_class(tmp_path, coin):
    Image.fromarray(coin.astype(np.uint8) * 200).save(tmp_path / "mask.png")
    mark = only_mark(tmp_path / "mask.png")
    np.testing.assert_array_equal(decoded(mark.run_length_mask), coin)
    assert mark.class_name == "coin"
    with pytest.raises(ValueError, match="only class"):
        only_mark(coin, ("coin", "note"))
    with pytest.raises(ValueError, match=r"shape \[H, W\]"):
        only_mark(np.zeros((3, 4, 5), bool))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
def test_index_masks_keep_their_numbers(dtype):
    labels = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    if dtype == np.uint16:
        labels[0, 0] = 40_000
    mark = only_mark(IndexMask(labels, {1: "coin"}, void=[255]))
    stored = np.asarray(Image.open(io.BytesIO(mark.index_mask.png)))
    np.testing.assert_array_equal(stored, labels)
    assert dict(mark.index_mask.class_of_value) == {1: "coin"}
    assert list(mark.index_mask.void_values) == [255]
    assert mark.WhichOneof("label") is None


def test_index_masks_of_files_go_as_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(b"file")
    assert only_mark(IndexMask(tmp_path / "a.png", {1: "a"})).index_mask.png == b"file"
    assert only_mark(IndexMask(b"bytes", {1: "a"})).index_mask.png == b"bytes"
    with pytest.raises(ValueError, match="float64"):
        only_mark(IndexMask(np.zeros((2, 2)), {1: "a"}))


def test_coco_masks_go_as_they_are_written():
    compressed = coco.encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))
    message = only_mark(RunLengthMask(compressed, "coin")).run_length_mask
    np.testing.assert_array_equal(decoded(message), np.eye(4, dtype=bool))
    plain = only_mark(RunLengthMask({"size": [2, 3], "counts": [1, 2, 3]}, "coin")).run_length_mask
    assert list(plain.lengths.counts) == [1, 2, 3]
    with pytest.raises(ValueError, match="bool or uint8"):
        only_mark(RunLengthMask(np.zeros((2, 2)), "coin"))
    with pytest.raises(ValueError, match="counts"):
        only_mark(RunLengthMask({"size": [2, 3]}, "coin"))


def test_shapes_take_lists_and_arrays():
    triangle = [(0, 0), (4, 0), (0, 4)]
    for rings in (triangle, [triangle], np.array(triangle), [np.array(triangle)]):
        (ring,) = only_mark(Polygon(rings, "coin")).polygon.rings
        assert [(v.x, v.y) for v in ring.vertices] == triangle
    assert len(only_mark(Polygon([triangle, triangle], "coin")).polygon.rings) == 2
    points = only_mark(Points((3, 4.5), "coin", radius=2)).points
    assert [(p.x, p.y, points.radius) for p in points.points] == [(3, 4.5, 2)]
    scribble = only_mark(Scribble([(1, 2), (3, 4)], "coin", width=5)).scribble
    assert (len(scribble.vertices), scribble.width) == (2, 5)
    box = only_mark(Box(1, 2, 3.5, 4, "coin")).box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (1, 2, 3.5, 4)
    with pytest.raises(ValueError, match="pairs"):
        only_mark(Points([(1, 2, 3)], "coin"))


def test_negative_marks_are_background_and_a_label_is_never_empty():
    assert only_mark(Box(0, 0, 1, 1, BACKGROUND)).WhichOneof("label") == "background"
    for label in ("", None, 3):
        with pytest.raises(ValueError, match="BACKGROUND"):
            only_mark(Box(0, 0, 1, 1, label))


def test_exhaustive_travels_only_if_it_is_said():
    marks = [Box(0, 0, 1, 1, "coin")]
    assert not annotation_message(marks, ()).HasField("exhaustive")
    assert annotation_message(Annotation(marks, exhaustive=True), ()).exhaustive
    with pytest.raises(TypeError, match="int"):
        annotation_message(7, ())
    with pytest.raises(TypeError, match="not a mark"):
        annotation_message(["box"], ())


def test_every_form_of_a_picture_means_the_same_pixels(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    alpha = np.dstack([photo, np.full(photo.shape[:2], 9, np.uint8)])
    file = (tmp_path / "photo.png").read_bytes()
    for form in (tmp_path / "photo.png", str(tmp_path / "photo.png"), file, alpha, photo):
        np.testing.assert_array_equal(to_array(form), photo)
    assert to_message(tmp_path / "photo.png", raw_limit=0).encoded == file
    assert to_message(file, raw_limit=0).encoded == file
    png = to_message(photo, raw_limit=10).encoded
    np.testing.assert_array_equal(to_array(png), photo)
    grey = to_array(photo[:, :, 0])
    np.testing.assert_array_equal(grey, np.stack([photo[:, :, 0]] * 3, axis=2))


def test_pixels_agree_with_files_on_orientation(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        raw = to_message(opened, raw_limit=1 << 20).raw
    assert (raw.height, raw.width) == (40, 24)
    np.testing.assert_array_equal(to_array(tmp_path / "turned.png"), np.rot90(photo, -1))


def test_what_is_not_a_picture_is_refused():
    with pytest.raises(ValueError, match="float64"):
        to_array(np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="shape"):
        to_array(np.zeros((3, 3, 2), np.uint8))
    with pytest.raises(ValueError, match="8 bits"):
        to_array(Image.new("F", (3, 3)))
    with pytest.raises(TypeError, match="int"):
        to_array(7)


def test_errors_carry_all_that_the_server_says():
    sent = status("INVALID_ARGUMENT", "Bad.", reason="EMPTY", field="supports[0].image")
    error = error_of_status(sent)
    assert isinstance(error, InvalidArgument)
    assert isinstance(error, ValueError)
    assert (error.code, error.reason, error.message) == ("INVALID_ARGUMENT", "EMPTY", "Bad.")
    assert error.field_violations == (FieldViolation("supports[0].image", "Bad."),)
    assert error.metadata == {"k": "v"}
    assert error.retry_after is None
    assert str(error) == "Bad. [INVALID_ARGUMENT EMPTY supports[0].image]"
    assert type(error_of_status(status("PERMISSION_DENIED"))) is FewSegError


def test_a_mask_that_contradicts_its_size_is_an_error_of_the_server():
    raw = segmentation.SegmentResponse(mask=types_pb2.Mask(height=2, width=2, raw=b"123"))
    with pytest.raises(InternalError):
        segmentation_of(raw)


def test_an_embedded_service_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    with pytest.raises(FailedPrecondition, match=r"pip install 'fewseg\[serve\]'") as caught:
        Client(":embedded:")
    assert caught.value.reason == "EMBEDDED_SERVICE_MISSING"


def test_an_embedded_service_that_does_not_start_says_why(monkeypatch):
    class Entry:
        def load(self):
            def start(**options):
                raise RuntimeError("the repository is empty")

            return start

    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [Entry()])
    with pytest.raises(FailedPrecondition, match="the repository is empty"):
        start_embedded({})
