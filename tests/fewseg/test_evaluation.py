"""Reading a model: the arithmetic of the papers, the layouts of data, the protocol."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewseg.annotations import Box, Points, RunLengthMask
from fewseg.cli import app
from fewseg.client import Client
from fewseg.evaluation import (
    AnnotatedFolder,
    CocoFolder,
    Tally,
    VocFolder,
    annotation_rule,
    every_query_once,
    random_episodes,
)
from tests.helpers.tiny_repository import write_tiny_repository

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"


def golden(method):
    folder = GOLDENS / method
    return np.load(folder / "metric.npz"), json.loads((folder / "metric.json").read_text())


def tallied(found, truths, class_ids):
    tally = Tally()
    for labels, truth, ids in zip(found, truths, class_ids, strict=True):
        tally.add(labels, truth, [f"{number:02d}" for number in np.atleast_1d(ids)])
    return tally


def test_one_way_runs_are_summed_as_panet_sums_them():
    arrays, numbers = golden("panet")
    run_of_episode = np.arange(len(arrays["pred"])) // 5 % 2
    runs = [
        tallied(arrays["pred"][of], arrays["target"][of], arrays["class_id"][of])
        for of in (run_of_episode == 0, run_of_episode == 1)
    ]
    scores = Tally.scores(runs)
    first = Tally.scores(runs[:1])
    assert first.mean_iou == pytest.approx(100 * numbers["run0_mean_iou"])
    assert list(first.per_class.values()) == pytest.approx(
        [100 * iou for iou in numbers["run0_class_iou"]]
    )
    assert list(scores.per_class.values()) == pytest.approx(
        [100 * iou for iou in numbers["class_iou_mean"]]
    )
    assert scores.mean_iou == pytest.approx(100 * numbers["mean_iou"])
    assert scores.mean_iou_std == pytest.approx(100 * numbers["mean_iou_std"])
    assert scores.fb_iou == pytest.approx(100 * numbers["binary_mean_iou"])
    assert scores.fb_iou_std == pytest.approx(100 * numbers["binary_mean_iou_std"])


def test_classes_missing_from_a_two_way_truth_do_not_count_as_in_panet():
    arrays, numbers = golden("panet")
    tally = tallied(arrays["pred_2way"], arrays["target_2way"], arrays["class_ids_2way"])
    scores = Tally.scores([tally])
    assert list(scores.per_class.values()) == pytest.approx(
        [100 * iou for iou in numbers["two_way_class_iou"]]
    )
    assert scores.fb_iou == pytest.approx(100 * numbers["two_way_binary_mean_iou"])


def test_sums_are_those_of_canet():
    arrays, numbers = golden("canet")
    tally = tallied(arrays["pred"], arrays["target"], arrays["class_index"])
    assert [tally.intersections[name] for name in tally.classes] == numbers["intersection"]
    assert [tally.unions[name] for name in tally.classes] == numbers["union"]
    assert Tally.scores([tally]).mean_iou == pytest.approx(100 * numbers["mean_over_present"])


def test_sums_are_those_of_sgone():
    arrays, numbers = golden("sgone")
    scores = Tally.scores([tallied(arrays["pred"], arrays["target"], arrays["class_id"])])
    assert list(scores.per_class.values()) == pytest.approx(
        [100 * iou for iou in numbers["class_iou"]]
    )


def test_foreground_and_background_are_those_of_revolver():
    arrays, numbers = golden("revolver")
    tally = tallied(arrays["pred"], arrays["target"], arrays["class_id"])
    found = [tally.iou("background"), tally.iou(*tally.classes)]
    assert found == pytest.approx(numbers["bin_iu"])
    assert Tally.scores([tally]).fb_iou == pytest.approx(50 * sum(numbers["bin_iu"]))


@pytest.fixture
def folder(tmp_path):
    """Three red squares on green, and where they are."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "red").mkdir(parents=True)
    for number, name in enumerate("abc"):
        mask = np.zeros((64, 64), np.uint8)
        mask[8 * number : 8 * number + 32, 16:48] = 255
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[..., 1] = 200
        pixels[mask > 0] = (200, 0, 0)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.jpg", quality=100)
        Image.fromarray(mask).save(tmp_path / "masks" / "red" / f"{name}.png")
    (tmp_path / "index.json").write_text(json.dumps({"red": ["a", "b", "c"], "none": []}))
    (tmp_path / "folds.json").write_text(json.dumps({"red": 1, "none": 0}))
    return tmp_path


def test_every_image_is_the_query_once_under_the_next_ones(folder):
    source = AnnotatedFolder(folder, fold=1)
    episodes = list(every_query_once(source, 2))
    assert [(e.supports, e.query) for e in episodes] == [
        (("b", "c"), "a"),
        (("c", "a"), "b"),
        (("a", "b"), "c"),
    ]


def test_a_class_of_few_images_lends_all_but_the_query(folder):
    source = AnnotatedFolder(folder, fold=1)
    assert list(every_query_once(source, 5)) == list(every_query_once(source, 2))
    with pytest.raises(ValueError, match="red: 4 images are needed, there are 3"):
        list(random_episodes(source, 3, 1, seed=0))
    (folder / "index.json").write_text(json.dumps({"red": ["a"]}))
    with pytest.raises(ValueError, match="red: 2 images are needed, there are 1"):
        list(every_query_once(AnnotatedFolder(folder), 1))


def test_random_episodes_are_the_same_again_and_never_show_the_query(folder):
    source = AnnotatedFolder(folder, fold=1)
    drawn = list(random_episodes(source, 2, 20, seed=3))
    assert drawn == list(random_episodes(source, 2, 20, seed=3))
    assert drawn != list(random_episodes(source, 2, 20, seed=4))
    assert all(len({*episode.supports, episode.query}) == 3 for episode in drawn)


def rewrite_masks(folder, written):
    """Stores the masks of ``folder`` as ``written`` makes an image of their booleans."""
    for path in (folder / "masks" / "red").iterdir():
        written(np.asarray(Image.open(path)) > 0).save(path)


def palette_mask(mask):
    """Numbers 0 and 1 in VOC's colours: black, and a dark red."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putdata(mask.astype(np.uint8).ravel())
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


@pytest.mark.parametrize(
    "written",
    [
        lambda mask: Image.fromarray(mask.astype(np.uint8)),
        lambda mask: Image.fromarray(mask.astype(np.uint16)),
        lambda mask: Image.fromarray(np.stack([mask.astype(np.uint8)] * 3, -1)),
        lambda mask: Image.fromarray(mask),
        palette_mask,
    ],
    ids=["grey", "16 bits", "colour", "1 bit", "palette"],
)
def test_masks_may_hold_only_0_and_1(folder, written):
    white = AnnotatedFolder(folder).labels("red", "b")
    rewrite_masks(folder, written)
    assert np.array_equal(AnnotatedFolder(folder).labels("red", "b"), white)
    assert white.sum() == 32 * 32


def test_beside_white_neither_1_nor_grey_is_the_class(folder):
    values = np.zeros((64, 64), np.uint8)
    values[0], values[1], values[2], values[3] = 1, 127, 128, 255
    Image.fromarray(values).save(folder / "masks" / "red" / "a.png")
    rows = AnnotatedFolder(folder).labels("red", "a").all(axis=1)
    assert np.flatnonzero(rows).tolist() == [2, 3]


def test_annotations_stay_inside_what_they_mark(folder):
    source = AnnotatedFolder(folder)
    labels = source.labels("red", "b")
    (red, rest) = annotation_rule("points:5")(labels, "red", "key").marks
    assert isinstance(red, Points)
    for mark, value in ((red, 1), (rest, 0)):
        columns, rows = np.asarray(mark.points).astype(int).T
        assert len(columns) == 5
        assert (labels[rows, columns] == value).all()
    (alone,) = annotation_rule("foreground-points:5")(labels, "red", "key").marks
    assert np.array_equal(alone.points, red.points)
    for mark, value in zip(
        annotation_rule("scribble")(labels, "red", "").marks, (1, 0), strict=True
    ):
        assert isinstance(mark, RunLengthMask)
        assert 20 < np.count_nonzero(mark.mask) < 400
        assert (labels[np.asarray(mark.mask)] == value).all()
    assert annotation_rule("box")(labels, "red", "").marks == [Box(16, 8, 48, 40, "red")]
    with pytest.raises(ValueError, match="points:N"):
        annotation_rule("points:0")


def evaluated(folder, tmp_path, *options):
    """What the command makes of the folder's fold 1, by the tiny model in this process."""
    write_tiny_repository(tmp_path / "repository")
    arguments = ["--server", ":embedded:", "--repository", tmp_path / "repository", "evaluate"]
    arguments += ["--data", folder, "--fold", 1, "--shots", 2, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def scores_of(folder, tmp_path, annotation):
    """The one JSON object that the command prints."""
    result = evaluated(folder, tmp_path, "--annotation", annotation, "--json")
    assert result.exit_code == 0, result.output
    (found,) = [json.loads(line) for line in result.stdout.splitlines()]
    return found


def test_a_model_is_read_through_the_service(folder, tmp_path):
    for annotation in ("mask", "points:5", "scribble", "box"):
        found = scores_of(folder, tmp_path, annotation)
        assert found["per_class"].keys() == {"red"}
        assert found["mean_iou"] > 75, annotation
        assert found["mean_iou"] == found["per_class"]["red"]
        assert found["fb_iou"] > 75, annotation


@pytest.mark.parametrize("before", [[], ["--server", "127.0.0.1:2"], ["--server", ":embedded:"]])
def test_a_server_that_is_not_there_is_named(folder, before):
    arguments = [*before, "--timeout", "0.5", "evaluate", "--data", str(folder), "--fold", "1"]
    result = CliRunner().invoke(app, [*arguments, "--server", "127.0.0.1:1"])
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: No server answers at 127.0.0.1:1: ")


@pytest.mark.parametrize("annotation", ["mask", "box"])
def test_masks_of_0_and_1_score_as_white_ones_do(folder, tmp_path, annotation):
    white = scores_of(folder, tmp_path, annotation)
    rewrite_masks(folder, lambda mask: Image.fromarray(mask.astype(np.uint8)))
    assert scores_of(folder, tmp_path, annotation) == white


@pytest.mark.parametrize(
    ("annotation", "value"), [("mask", 0), ("box", 0), ("points:5", 2), ("scribble", 127)]
)
def test_a_mask_without_its_class_is_named(folder, tmp_path, annotation, value):
    path = folder / "masks" / "red" / "b.png"
    Image.fromarray(np.full((64, 64), value, np.uint8)).save(path)
    result = evaluated(folder, tmp_path, "--annotation", annotation)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "Error: b cannot be a support: its mask shows no pixel of red. A mask of a folder is white"
        " (above 127) where the class is and black elsewhere, or holds only 0 and 1, with 1 where"
        " the class is.\n"
    )


def test_tasks_are_cross_guided_where_that_is_asked_for(folder, tmp_path, monkeypatch):
    registered = []
    register = Client.register

    def noted(self, *arguments, **options):
        task = register(self, *arguments, **options)
        registered.append(task.fusion)
        return task

    monkeypatch.setattr(Client, "register", noted)
    result = evaluated(folder, tmp_path, "--cross-guided")
    assert result.exit_code == 0, result.output
    assert set(registered) == {"cross_guided"}


def test_pascal_is_read_from_its_own_layout(tmp_path):
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("one\ntwo\n")
    values = np.array([[0, 6, 7], [255, 6, 1]], np.uint8)
    for name, mask in (("one", values), ("two", np.minimum(values, 6))):
        picture = Image.fromarray(mask, "L").convert("P")
        picture.putdata(mask.ravel())
        picture.putpalette([(37 * i) % 256 for i in range(768)])
        picture.save(tmp_path / "SegmentationClass" / f"{name}.png")
    source = VocFolder(tmp_path, fold=1)
    assert source.index == {
        "bus": ["one", "two"],
        "car": ["one"],
        "cat": [],
        "chair": [],
        "cow": [],
    }
    assert source.labels("bus", "one").tolist() == [[0, 1, 0], [255, 1, 0]]
    assert source.image("one").name == "one.jpg"


def test_coco_is_read_from_its_own_layout(tmp_path):
    (tmp_path / "annotations").mkdir()
    annotations = [
        {"image_id": 7, "category_id": 3, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]},
        {"image_id": 7, "category_id": 3, "segmentation": {"size": [6, 8], "counts": [44, 4]}},
        {"image_id": 7, "category_id": 5, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
    ]
    document = {
        "images": [{"id": 7, "file_name": "seven.jpg", "height": 6, "width": 8}],
        "categories": [{"id": number, "name": f"class{number}"} for number in (1, 3, 5, 6, 9, 11)],
        "annotations": annotations,
    }
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(document))
    source = CocoFolder(tmp_path, fold=1)
    assert source.index == {"class3": ["7"], "class11": []}
    expected = np.zeros((6, 8), np.uint8)
    expected[1:3, 1:4] = 1
    expected[2:, 7] = 1
    assert np.array_equal(source.labels("class3", "7"), expected)
    assert source.image("7") == tmp_path / "val2014" / "seven.jpg"
