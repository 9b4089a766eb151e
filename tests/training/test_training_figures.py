"""Pictures of results show the numbers that were read."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from training.figures import draw_scores, read_scores, scores_figure

RESULTS = {
    "street-set": {
        1: {"mean_iou": 25.0, "per_class": {"hat": 10.0, "long_coat": 40.0}},
        5: {"mean_iou": 40.0, "per_class": {"hat": 60.0, "long_coat": 20.0}},
    },
    "tiles": {1: {"mean_iou": 7.5, "per_class": {"crack": 7.5}}},
}


@pytest.fixture
def files(tmp_path):
    written = []
    for name, by_shots in RESULTS.items():
        for shots, scores in by_shots.items():
            written.append(tmp_path / f"{name}-{shots}.json")
            written[-1].write_text(json.dumps(scores))
    return written


def drawn(axes):
    """Widths of the bars of a panel by class, from top to bottom, then by number of shots."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    found = {name: {} for name in reversed(names)}
    for bars in axes.containers:
        for bar in bars:
            row = round(bar.get_y() + bar.get_height() / 2)
            found[names[row]][bars.get_label()] = bar.get_width()
    return found


def test_every_class_has_a_bar_of_its_score_for_each_number_of_shots(files):
    panels = {axes.get_title(): axes for axes in scores_figure(read_scores(files)).axes}
    assert set(panels) == set(RESULTS)
    street = drawn(panels["street-set"])
    assert street == {
        "hat": {"1 shot": 10.0, "5 shots": 60.0},
        "long coat": {"1 shot": 40.0, "5 shots": 20.0},
    }
    assert list(street) == ["hat", "long coat"], "what five shots find best is on top"
    assert drawn(panels["tiles"]) == {"crack": {"1 shot": 7.5}}


def test_means_are_marked(files):
    for axes in scores_figure(read_scores(files)).axes:
        marked = [line.get_xdata()[0] for line in axes.lines]
        assert marked == [scores["mean_iou"] for scores in RESULTS[axes.get_title()].values()]


def test_the_picture_is_named_after_the_folder_of_its_numbers(files, tmp_path):
    path = draw_scores(files, tmp_path / "out")
    assert path == tmp_path / "out" / f"{tmp_path.name}-scores.png"
    assert min(Image.open(path).size) > 100


def test_a_name_without_shots_is_refused(tmp_path):
    with pytest.raises(ValueError, match="<set>-<shots>"):
        read_scores([tmp_path / "tiles.json"])
