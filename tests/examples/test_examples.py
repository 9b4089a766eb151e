"""The examples run as they are, against the default model."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.embedded import start

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def server():
    service = start(repository=ROOT / "model_repository")
    yield service.target
    service.close()


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    """Runs an example and returns its lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "--server", server, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def overlaps_in(lines):
    """By what stands before it, each overlap with the truth that was told, in percent."""
    found = (re.match(r"(.*): (?:overlap )?(\d+)%", line) for line in lines)
    return {match[1]: int(match[2]) for match in found if match}


def test_register_and_segment(run, tmp_path):
    assert "was answered by compact-" in run("register_and_segment")[0]
    assert Image.open(tmp_path / "coins.png").size == (200, 303)


def test_the_snippet_of_the_readme_finds_coins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(snippet, names)
    assert 0.2 < (names["result"].mask == 1).mean() < 0.6
    assert names["result"].classes[0].mean_score > 0.7
    assert (tmp_path / "found.png").exists()


def test_interactive(run, tmp_path):
    told = run("interactive")
    assert [line.split(":")[0] for line in told] == [f"click {n}" for n in (1, 2, 3, 4)]
    assert "inferred" in told[0]
    assert "given" in told[3]
    assert all("features reused" in line for line in told), "the photograph is encoded once"
    assert len(list(tmp_path.glob("cat-*.png"))) == 4


def test_stream(run):
    told = run("stream", "--frames", "12")
    assert any("frame 6: The bytes are not a readable image" in line for line in told)
    assert "frames per second" in told[-1]


def test_video(run, tmp_path):
    told = run("video", "--frames", "12")
    assert told[-1].startswith("11 frames")
    assert overlaps_in(told)["frame 10"] > 60
    assert (tmp_path / "film-0010.png").exists()


def test_a_video_of_ones_own(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from pictures import film

    for folder in ("frames", "masks"):
        (tmp_path / folder).mkdir()
    for number, frame in enumerate(film(3)):
        Image.fromarray(frame.pixels).save(tmp_path / "frames" / f"{number:05d}.jpg")
        Image.fromarray(255 * frame.labels).save(tmp_path / "masks" / f"{number:05d}.png")
    assert run("video", "--film", str(tmp_path))[-1].startswith("2 frames")


def test_interactive_video(run):
    told = run("interactive_video", "--frames", "16", "--every", "4")
    revisions = [int(re.search(r"by revision (\d+)", line)[1]) for line in told]
    assert revisions[0] == 1
    assert revisions == sorted(revisions), "the task never goes back"
    assert revisions[-1] >= 3, "clicks count while the stream runs"
    assert any("a click" in line for line in told)
    assert any("one more click on the first frame" in line for line in told)
    assert min(overlaps_in(line.replace(" by", ":") for line in told).values()) > 40


def test_semantic(run):
    told = overlaps_in(run("semantic", "--queries", "2"))
    assert list(told) == [
        f"{ways} way, {shots} shot, {classes}"
        for ways, classes in ((1, "brick"), (1, "gravel"), (2, "brick and gravel"))
        for shots in (1, 5)
    ]
    assert min(told.values()) > 60


def test_semantic_with_ones_own_photographs(run, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, colour in (("red", 0), ("blue", 2)):
        (tmp_path / "masks" / name).mkdir(parents=True)
        for number in range(7):
            pixels = random.integers(0, 60, (96, 96, 3), np.uint8)
            pixels[20:70, 30:80, colour] += 180
            mask = np.zeros((96, 96), np.uint8)
            mask[20:70, 30:80] = 255
            Image.fromarray(pixels).save(tmp_path / "images" / f"{name}-{number}.jpg")
            Image.fromarray(mask).save(tmp_path / "masks" / name / f"{name}-{number}.png")
    told = run("semantic", "--data", str(tmp_path), "--classes", "red,blue", "--queries", "2")
    assert len(overlaps_in(told)) == 6


def test_weak_annotation(run):
    told = run("weak_annotation", "--queries", "3")
    found = overlaps_in(told)
    assert list(found) == ["a dense mask", "two scribbles", "a box", "a click"]
    assert min(found.values()) > 50
    assert ["inferred" in line for line in told] == [False, False, True, True]


def test_from_instances(run, tmp_path):
    found = overlaps_in(run("from_instances"))
    assert list(found) == ["1 instances", "3 instances", "12 instances"]
    assert min(found.values()) > 60
    assert (tmp_path / "instances.png").exists()


def test_many_supports(run):
    told = run("many_supports", "--supports", "24")
    before, after = (line.split(": ")[1].split(" of")[0] for line in told if "a query" in line)
    assert before == after, "what a query carries does not grow"
    assert any("23 sent" in line for line in told)
    assert any("worst: crop-0020" in line for line in told)
    assert told[-1] == "23 supports are left"


def test_limits(run, tmp_path):
    told = run("limits")
    found = list(overlaps_in(told).values())
    assert len(found) == 10
    fails, helps = found[::2], found[1::2]
    assert min(np.subtract(helps, fails)) >= 3, "what is said to help does"
    fewer, all_of_them = (
        int(re.search(r"(\d+) pieces", line)[1]) for line in told if "piec" in line
    )
    assert fewer < 12 <= all_of_them, "coins are joined in one picture, and apart in its tiles"
    assert Image.open(tmp_path / "limits" / "contact-sheet.jpg").width > 1000
