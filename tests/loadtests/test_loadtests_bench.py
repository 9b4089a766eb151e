from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtests.bench.document import BEGIN, END, DocumentError, update
from loadtests.bench.rows import Row, unmeasured
from loadtests.floor import drawn_planes, finding, network_image
from loadtests.photographs import STANDARD_SIZE, photographs

ROWS = [
    Row(name="one", what="A", target="t", floor="f", measured="3 ms", met=True, figures={"p": 3.0}),
    Row(name="two", what="B", target="t", floor="f", measured="9 ms", met=False),
    unmeasured("three", "C", "t", "there is no such server here"),
]


def test_the_table_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"# Before\n{BEGIN}\nold table\n{END}\n# After\n")

    update(document, ROWS, "Measured today.")
    update(document, ROWS, "Measured today.")

    text = document.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("# After\n")
    assert "old table" not in text
    assert text.count("| A | t | f | 3 ms | met |") == 1
    assert "| B | t | f | 9 ms | **missed** |" in text
    assert "not measured. there is no such server here" in text


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("nothing")

    with pytest.raises(DocumentError):
        update(document, ROWS, "")

    assert document.read_text() == "nothing"


def test_photographs_are_of_the_size_asked_for_and_all_different() -> None:
    made = photographs(8, [STANDARD_SIZE, (120, 90)], seed=1) + photographs(4, seed=2)

    assert len({one.jpeg for one in made}) == 12
    assert [(one.height, one.width) for one in made[:2]] == [STANDARD_SIZE, (120, 90)]
    assert photographs(2, seed=1)[1].jpeg == photographs(2, seed=1)[1].jpeg


def test_the_floor_finds_what_the_logits_say() -> None:
    logits = np.full((2, 80, 80), 0.0, np.float32)
    logits[1] = -4.0
    logits[1, 20:40, 10:60] = 4.0

    found = finding(logits, 375, 500)

    assert found.box is not None
    x_min, y_min, x_max, y_max = found.box
    assert abs(y_min - 20 / 80 * 375) < 3
    assert abs(y_max - 40 / 80 * 375) < 3
    assert abs(x_min - 10 / 80 * 500) < 4
    assert abs(x_max - 60 / 80 * 500) < 4
    mask = np.asarray(Image.open(__import__("io").BytesIO(found.png)))
    assert mask.shape == (375, 500)
    assert int(mask.sum()) == found.area
    assert 0.5 < found.score < 1.0


def test_the_floor_prepares_images_and_planes_for_the_network() -> None:
    (photograph,) = photographs(1)

    assert network_image(photograph.jpeg).shape == (1, 320, 320, 3)
    planes = drawn_planes([(100, 100), (300, 100), (300, 300), (100, 300)], 375, 500)
    assert planes.shape == (1, 2, 320, 320)
    np.testing.assert_array_equal(planes.sum(axis=1), 1.0)
    assert planes[0, 1].mean() == pytest.approx(200 * 200 / (375 * 500), rel=0.05)
