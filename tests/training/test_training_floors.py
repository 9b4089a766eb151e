# SPDX-License-Identifier: Apache-2.0
"""Floors are read on the queries of the evaluation, and no query lends itself its mask."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from fewseg.evaluation import AnnotatedFolder
from training import __main__ as command
from training.floors import everything, mean_mask, read_floor, teacher_prototypes
from training.teacher import Teacher

SIZE = (64, 96)
#: Columns that the class takes in each image; the last leaves the quarter that the others share.
WIDTHS = {"a": 48, "b": 48, "c": 24}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "stripes"
    (root / "images").mkdir(parents=True)
    (root / "masks" / "left").mkdir(parents=True)
    for name, width in WIDTHS.items():
        mask = np.zeros(SIZE, np.uint8)
        mask[:, :width] = 255
        Image.fromarray(mask).save(root / "masks" / "left" / f"{name}.png")
        picture = np.full((*SIZE, 3), (30, 90, 30), np.uint8)
        picture[:, :width] = (220, 40, 40)
        Image.fromarray(picture).save(root / "images" / f"{name}.jpg", quality=95)
    (root / "index.json").write_text(json.dumps({"left": list(WIDTHS)}))
    return root


def test_the_mean_mask_is_that_of_the_next_images(folder):
    source = AnnotatedFolder(folder)
    # a by b: 48 of 48; b by c: 24 of 48; c by a: 24 of 48.
    one = read_floor(source, 1, mean_mask(source))
    assert one.mean_iou == pytest.approx(100 * 96 / 144, abs=1)
    # Of two supports half is enough: a by b and c, b by c and a, c by a and b.
    two = read_floor(source, 2, mean_mask(source))
    assert two.mean_iou == pytest.approx(100 * 120 / 144, abs=1)


def test_everything_scores_the_share_that_the_class_covers(folder):
    covered = 100 * sum(WIDTHS.values()) / (len(WIDTHS) * SIZE[1])
    scores = read_floor(AnnotatedFolder(folder), 1, everything)
    assert scores.mean_iou == pytest.approx(covered)
    # Nothing of the background is found.
    assert scores.fb_iou == pytest.approx(covered / 2)


@pytest.fixture
def archive(tmp_path):
    """Weights of the teacher's shapes that let colours through."""
    random = np.random.default_rng(0)
    arrays, channels = {}, 3
    widths = (64, 128, 128, 256, 256, *[512] * 6)
    layers = [("conv1", "conv1_bn", "conv1__kernel", (3, 3, 3, 32))]
    channels = 32
    for number, width in enumerate(widths, start=1):
        depthwise, pointwise = f"conv_dw_{number}", f"conv_pw_{number}"
        layers += [
            (depthwise, f"{depthwise}_bn", f"{depthwise}__depthwise_kernel", (3, 3, channels, 1)),
            (pointwise, f"{pointwise}_bn", f"{pointwise}__kernel", (1, 1, channels, width)),
        ]
        channels = width
    for _, norm, kernel, shape in layers:
        fan_in = shape[0] * shape[1] * (1 if shape[3] == 1 else shape[2])
        arrays[kernel] = random.normal(size=shape).astype(np.float32) * np.sqrt(2 / fan_in)
        out = shape[2] if shape[3] == 1 else shape[3]
        for name, value in (("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1)):
            arrays[f"{norm}__{name}"] = np.full(out, value, np.float32)
    np.savez(tmp_path / "teacher.npz", **arrays)
    return tmp_path / "teacher.npz"


def test_prototypes_on_the_teachers_features_tell_colours_apart(folder, archive):
    source = AnnotatedFolder(folder)
    found = read_floor(source, 1, teacher_prototypes(source, Teacher.on("cpu", archive))).mean_iou
    # A cell of the coarse map is five pixels wide; the mean mask scores 67.
    assert found > 80


def test_the_command_prints_every_floor(folder, archive, monkeypatch, capsys):
    arguments = f"training floors --data {folder} --shots 1 2 --teacher {archive}"
    monkeypatch.setattr(sys, "argv", arguments.split())
    command.main()
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"mean mask", "everything", "teacher"}
    assert printed["mean mask"] == {"1-shot": [66.7, 70.8], "2-shot": [83.3, 84.5]}
    assert printed["everything"]["1-shot"] == printed["everything"]["2-shot"] == [41.7, 20.8]


def test_the_served_graphs_are_timed_beside_the_teachers_trunk(archive, monkeypatch, capsys):
    arguments = f"training speed --teacher {archive} --rounds 1"
    monkeypatch.setattr(sys, "argv", arguments.split())
    command.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [taken["threads"] for taken in printed] == [1, 2]
    for taken in printed:
        assert set(taken) == {"threads", "teacher", "features", "decode"}
        assert min(taken.values()) > 0
