"""PASCAL-5i and COCO-20i through the command, on small data in the layouts of their authors."""

from __future__ import annotations

import json
import os
from itertools import product

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewseg.cli import app
from fewseg.client import Client
from tests.helpers.tiny_repository import write_tiny_repository

PASCAL_CLASSES = ("bus", "car", "cat", "chair", "cow")
"""Those of fold 1: numbers 6 to 10."""

COCO_CLASSES = ("bicycle", "bus")
"""Of the eight below those of fold 1: the second and the sixth."""

SQUARE = 32


def corners(classes):
    """Name of an image, place of its class among ``classes``, top and left of its red square."""
    for place, number in product(range(len(classes)), range(3)):
        yield 10 * (place + 1) + number, place, 8 * number, 8 * (place + number) % 32


def square(top, left, margin=0):
    """Where a square is, with so many pixels around it."""
    start, end = np.maximum((top - margin, left - margin), 0), SQUARE + margin
    return slice(start[0], top + end), slice(start[1], left + end)


def photograph(path, red):
    pixels = np.full((64, 64, 3), (0, 200, 0), np.uint8)
    pixels[red] = (200, 0, 0)
    Image.fromarray(pixels).save(path, quality=100)


@pytest.fixture
def pascal(tmp_path):
    """VOC's folders: palette masks, void where the red of the squares goes on outside of them."""
    root = tmp_path / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    names = []
    for name, place, top, left in corners(PASCAL_CLASSES):
        photograph(root / "JPEGImages" / f"{name}.jpg", square(top, left, margin=8))
        values = np.zeros((64, 64), np.uint8)
        values[square(top, left, margin=8)] = 255
        values[square(top, left)] = 6 + place
        mask = Image.fromarray(values)
        mask.putpalette([(37 * i) % 256 for i in range(768)])
        mask.save(root / "SegmentationClass" / f"{name}.png")
        names.append(f"{name}\n")
    (lists / "val.txt").write_text("".join(names))
    return root


@pytest.fixture
def coco(tmp_path):
    """COCO's folders: polygons, and a class of another fold on every image."""
    root = tmp_path / "coco"
    for folder in (root / "annotations", root / "val2014"):
        folder.mkdir(parents=True)
    kinds = ("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck")
    images, annotations = [], []
    for name, place, top, left in corners(COCO_CLASSES):
        file_name = f"COCO_val2014_{name:012d}.jpg"
        photograph(root / "val2014" / file_name, square(top, left))
        images.append({"id": name, "file_name": file_name, "height": 64, "width": 64})
        right, bottom = left + SQUARE, top + SQUARE
        outline = [left, top, right, top, right, bottom, left, bottom]
        for kind, ring in ((2 + 4 * place, outline), (1, [0, 0, 64, 0, 64, 64, 0, 64])):
            annotations.append({"image_id": name, "category_id": kind, "segmentation": [ring]})
    document = {
        "images": images,
        "categories": [{"id": number, "name": kind} for number, kind in enumerate(kinds, 1)],
        "annotations": annotations,
    }
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def fewseg(tmp_path):
    """Runs the command with a tiny model in this process."""
    # Its cells are eight pixels wide, and squares lie on them.
    write_tiny_repository(tmp_path / "repository", size=64)

    def run(*arguments):
        before = ["--server", ":embedded:", "--repository", tmp_path / "repository", "--json"]
        return CliRunner().invoke(app, [str(argument) for argument in (*before, *arguments)])

    return run


@pytest.fixture
def registered(monkeypatch):
    """Classes and numbers of supports of the tasks that are registered."""
    tasks = []
    register = Client.register

    def noted(self, classes, supports, **options):
        tasks.append((*classes, len(supports)))
        return register(self, classes, supports, **options)

    monkeypatch.setattr(Client, "register", noted)
    return tasks


@pytest.mark.parametrize(
    ("protocol", "data", "classes", "episodes"),
    # As many as it takes for each seed to draw every class.
    [("pascal-5i", "pascal", PASCAL_CLASSES, 14), ("coco-20i", "coco", COCO_CLASSES, 4)],
)
def test_a_standard_protocol_is_read_by_the_command(
    request, fewseg, registered, protocol, data, classes, episodes
):
    arguments = ["evaluate", "--data", request.getfixturevalue(data), "--protocol", protocol]
    arguments += ["--fold", 1, "--shots", 2, "--episodes", episodes, "--seeds", 2]
    result = fewseg(*arguments)
    assert result.exit_code == 0, result.output
    (found,) = [json.loads(line) for line in result.stdout.splitlines()]

    assert len(registered) == 2 * episodes
    assert set(registered) == {(name, 2) for name in classes}
    assert registered[:episodes] != registered[episodes:]
    assert found.keys() == {"mean_iou", "fb_iou", "per_class", "mean_iou_std", "fb_iou_std"}
    assert found["per_class"].keys() == set(classes)
    assert all(90 < iou <= 100 for iou in found["per_class"].values()), found
    assert found["mean_iou"] == pytest.approx(np.mean(list(found["per_class"].values())), abs=0.01)
    assert 90 < found["fb_iou"] <= 100
    assert 0 <= found["mean_iou_std"] < 10
    assert 0 <= found["fb_iou_std"] < 10


@pytest.mark.parametrize("protocol", ["pascal-5i", "coco-20i"])
def test_a_standard_protocol_needs_a_fold(fewseg, tmp_path, protocol):
    result = fewseg("evaluate", "--data", tmp_path, "--protocol", protocol)
    assert result.exit_code == 2
    assert "--fold 0, 1, 2 or 3" in result.stderr
