"""Supports, marks and task files as people write them."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from fewseg import BACKGROUND, Annotation, Box, IndexMask, Points, Polygon, Scribble
from fewseg.cli.marks import annotation_of, mark_of, support_of
from fewseg.cli.task_file import duration_of, read_task_file


def test_a_support_is_an_image_and_its_marks():
    support = support_of("'my photo.png' points=coin:120,45+130.5,50@3 id=first shots=coin,note")
    assert support.image == Path("my photo.png")
    assert support.id == "first"
    assert support.annotation.shot_classes == ("coin", "note")
    (points,) = support.annotation.marks
    assert (points.points, points.class_name, points.radius) == (
        [(120, 45), (130.5, 50)], "coin", 3,
    )  # fmt: skip


def test_every_mark_has_its_word():
    scribble = mark_of("scribble", "coin:1,2+3,4@5")
    assert isinstance(scribble, Scribble)
    assert (scribble.vertices, scribble.width) == ([(1, 2), (3, 4)], 5)
    polygon = mark_of("polygon", "coin:0,0+4,0+4,4/9,9+8,9+8,8")
    assert isinstance(polygon, Polygon)
    assert [len(ring) for ring in polygon.rings] == [3, 3]
    assert mark_of("box", "a:b:1,2,3,4") == Box(1, 2, 3, 4, "a:b")
    assert mark_of("box", "background:1,2,3,4") == Box(1, 2, 3, 4, BACKGROUND)
    mask = mark_of("mask", "m:1.png:1=coin,2=note,255=void")
    assert isinstance(mask, IndexMask)
    assert (mask.labels, mask.classes, mask.void) == (
        Path("m:1.png"), {1: "coin", 2: "note"}, [255],
    )  # fmt: skip


def test_a_mask_without_classes_stands_for_the_only_class():
    assert annotation_of(["mask=a/b.png"]) == Path("a/b.png")
    with pytest.raises(ValueError, match="stands alone"):
        annotation_of(["mask=a.png", "points=coin:1,1"])


def test_exhaustive_is_said_or_left_open():
    assert annotation_of(["box=a:0,0,1,1"]).exhaustive is None
    assert annotation_of(["box=a:0,0,1,1", "exhaustive=yes"]).exhaustive is True
    assert annotation_of(["box=a:0,0,1,1", "exhaustive=no"]).exhaustive is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png", "'IMAGE MARK...'"),
        ("", "'IMAGE MARK...'"),
        ("a.png id=x", "at least one mark"),
        ("a.png circle=coin:1,1", "there are: mask, points, scribble, polygon, box"),
        ("a.png points=1,1", "Write points=CLASS:x,y"),
        ("a.png points=coin:1", "Write points=CLASS:x,y"),
        ("a.png box=coin:1,2,3", "Write box=CLASS:x_min"),
        ("a.png scribble=coin:1,2@wide", "Write scribble=CLASS"),
        ("a.png box=coin:1,2,3,4 exhaustive=perhaps", "exhaustive=yes or exhaustive=no"),
    ],
)
def test_a_slip_is_answered_with_how_to_write_it(text, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        support_of(text)


def test_a_task_file_describes_the_whole_task(tmp_path):
    marks = [
        {"type": "mask", "file": "m.png", "values": {"1": "coin"}, "void": [255]},
        {"type": "run_lengths", "class": "coin", "size": [2, 3], "counts": [1, 5]},
        {"type": "polygon", "class": "coin", "rings": [[[0, 0], [4, 0], [4, 4]]]},
        {"type": "points", "class": "background", "points": [[1, 2]], "radius": 3},
        {"type": "scribble", "class": "coin", "vertices": [[1, 2], [3, 4]], "width": 2.5},
        {"type": "box", "class": "coin", "box": [1, 2, 3, 4]},
    ]
    document = {
        "task_id": "coins",
        "classes": ["coin"],
        "model": "compact",
        "display_name": "Coins",
        "ttl": "2h",
        "fusion": "cross-guided",
        "supports": [
            {"id": "a", "image": "a.png", "marks": marks, "exhaustive": False},
            {"image": "/abs/b.png", "mask": "b_mask.png"},
        ],
    }
    (tmp_path / "task.json").write_text(json.dumps(document))

    task = read_task_file(tmp_path / "task.json")

    assert (task.task_id, task.classes, task.model) == ("coins", ("coin",), "compact")
    assert (task.display_name, task.ttl) == ("Coins", timedelta(hours=2))
    assert task.fusion == "cross_guided"
    first, second = task.supports
    assert first.image == tmp_path / "a.png"
    assert isinstance(first.annotation, Annotation)
    assert first.annotation.exhaustive is False
    kinds = [type(mark).__name__ for mark in first.annotation.marks]
    assert kinds == ["IndexMask", "RunLengthMask", "Polygon", "Points", "Scribble", "Box"]
    assert first.annotation.marks[0].labels == tmp_path / "m.png"
    negative = first.annotation.marks[3]
    assert isinstance(negative, Points)
    assert (negative.class_name, negative.radius) == (BACKGROUND, 3)
    assert (second.image, second.annotation) == (Path("/abs/b.png"), tmp_path / "b_mask.png")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "expected an object"),
        ("{", "not JSON"),
        ("{}", "'supports' is missing"),
        ('{"supports": [], "colour": 1}', "there is no key 'colour'"),
        ('{"supports": [{"image": 3}]}', r"supports\[0\]: 'image' must be a text"),
        ('{"supports": [{"image": "a", "mask": "m", "ids": 1}]}', "there is no key 'ids'"),
        (
            '{"supports": [{"image": "a", "marks": [{"type": "disc"}]}]}',
            r"supports\[0\]\.marks\[0\]: there is no mark 'disc'",
        ),
        (
            '{"supports": [{"image": "a", "marks": [{"type": "box", "box": [1]}]}]}',
            r"supports\[0\]\.marks\[0\]: 'box' must be \[x_min",
        ),
        (
            '{"supports": [{"image": "a", "marks": [{"type": "box", "box": [1, 2, 3, 4]}]}]}',
            "'class' is missing",
        ),
        ('{"supports": [], "classes": [1]}', "list of texts"),
        ('{"supports": [], "ttl": "soon"}', "90s, 15m, 2h or 7d"),
        ('{"supports": [], "fusion": "none"}', "merged or cross-guided"),
    ],
)
def test_a_wrong_task_file_is_told_where_it_is_wrong(tmp_path, document, message):
    (tmp_path / "task.json").write_text(document)
    with pytest.raises(ValueError, match=message):
        read_task_file(tmp_path / "task.json")


def test_times_have_units():
    assert [duration_of(t).total_seconds() for t in ("90s", "1.5m", "2h", "7d")] == [
        90, 90, 7200, 604_800,
    ]  # fmt: skip
