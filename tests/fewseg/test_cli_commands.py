"""The commands against a server that answers what the test wants."""

import json

import numpy as np
import pytest
from fake_fewseg_server import status
from PIL import Image
from typer.testing import CliRunner

from fewseg.cli import app


@pytest.fixture
def fewseg(server):
    """Runs the command against the server."""

    def run(*arguments):
        return CliRunner().invoke(app, ["--server", server.target, *map(str, arguments)])

    return run


@pytest.fixture
def files(tmp_path, photo, coin):
    """A folder with two photographs and a mask."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(photo).save(folder / "one.png")
    Image.fromarray(photo[:20]).save(folder / "two.png")
    Image.fromarray(coin.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    (folder / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def registered(fewseg, files):
    support = f"{files}/images/one.png mask={files}/mask.png id=a"
    result = fewseg("register", "coins", "--class", "coin", "--support", support)
    assert result.exit_code == 0, result.output
    return result


def lines_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_registering_shows_how_well_supports_agree(registered, server):
    assert "Registered tenants/default/tasks/coins (1 support," in registered.stdout
    assert "coin 0.75" in registered.stdout
    assert "the surroundings of the marks" in registered.stdout
    request = server.requests["RegisterTask"][0]
    assert request.supports[0].annotation.marks[0].class_name == "coin"


def test_a_task_file_registers_and_adds(fewseg, server, files):
    document = {
        "task_id": "coins",
        "classes": ["coin"],
        "ttl": "1h",
        "supports": [{"image": "images/one.png", "mask": "mask.png"}],
    }
    (files / "task.json").write_text(json.dumps(document))

    assert fewseg("register", "--task", files / "task.json").exit_code == 0
    assert server.requests["RegisterTask"][0].task.ttl.seconds == 3600
    added = fewseg("add", "coins", "--task", files / "task.json", "--json")
    assert lines_of(added)[0]["support_count"] == 2


def test_json_is_all_there_is_on_stdout(fewseg, registered, files):
    (task,) = lines_of(fewseg("task", "coins", "--json"))
    assert task["name"] == "tenants/default/tasks/coins"
    assert task["supports"][0]["leave_one_out"] == {"coin": 0.75}
    assert [t["name"] for t in lines_of(fewseg("--json", "tasks"))] == [task["name"]]
    assert [m["alias"] for m in lines_of(fewseg("models", "--json"))] == ["compact", "panet"]
    assert lines_of(fewseg("models", "--refresh", "--json"))[-1] == {
        "problem": "broken-1 lacks decode"
    }
    assert lines_of(fewseg("info", "--json"))[0]["limits"]["supports"] == 5


def test_people_get_tables(fewseg, registered):
    assert "coins" in fewseg("tasks").stdout
    assert "etag" in fewseg("task", "coins").stdout
    models = fewseg("models", "--refresh")
    assert "compact-12345678" in models.stdout
    assert "broken-1 lacks decode" in models.stderr
    assert "limit supports" in fewseg("info").stdout


def test_marks_are_painted_over_or_replaced(fewseg, registered, server):
    assert fewseg("annotate", "coins", "a", "points=background:1,1", "--extend").exit_code == 0
    assert fewseg("annotate", "coins", "a", "box=coin:1,1,4,4", "--etag", "u-1").exit_code == 0
    extended, replaced = server.requests["AnnotateSupport"]
    assert extended.annotation.marks[0].background
    assert (extended.mode, replaced.mode, replaced.etag) == (2, 1, "u-1")


def test_supports_and_tasks_are_removed(fewseg, registered, server):
    assert fewseg("remove", "coins", "a").exit_code == 0
    assert server.requests["RemoveSupport"][0].support_id == "a"
    assert "Deleted coins." in fewseg("delete", "coins").stdout
    assert "There are no tasks." in fewseg("tasks").stdout


def test_a_folder_is_segmented_into_another(fewseg, registered, files):
    out = files / "out"
    result = fewseg("segment", "coins", files / "images", "--out", out, "--overlay")

    assert result.exit_code == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "one.png", "one_overlay.png", "two.png", "two_overlay.png",
    ]  # fmt: skip
    mask = np.asarray(Image.open(out / "two.png"))
    assert mask.shape == (20, 40)
    assert mask[:, :20].all()
    assert not mask[:, 20:].any()
    assert Image.open(out / "one_overlay.png").size == (40, 24)
    assert "50.0%" in result.stdout
    assert "2 ms" in result.stdout


@pytest.mark.parametrize("format", ["rle", "raw"])
def test_masks_are_written_in_the_form_that_was_asked_for(fewseg, registered, files, format):
    out = files / "out"
    pattern = f"{files}/images/o*.png"
    assert fewseg("segment", "coins", pattern, "--out", out, "--format", format).exit_code == 0
    if format == "raw":
        assert np.load(out / "one.npy").sum() == 24 * 20
    else:
        (mask,) = json.loads((out / "one.json").read_text())
        assert (mask["class"], mask["size"]) == ("coin", [24, 40])


def test_a_bad_image_does_not_end_the_run(fewseg, registered, files):
    (files / "images" / "one.jpg").write_bytes((files / "images" / "two.png").read_bytes())
    images = [files / "images" / n for n in ("one.png", "missing.png", "one.jpg")]

    result = fewseg("segment", "coins", *images, "--out", files / "out", "--json")

    assert result.exit_code == 1
    first, missing, last = lines_of(result)
    assert first["classes"][0]["area"] == 480
    assert missing["error"]["reason"] == "IMAGE_UNREADABLE"
    assert last["mask"].endswith("one-2.png")
    assert "missing.png" in result.stderr
    table = fewseg("segment", "coins", *images, "--out", files / "out")
    assert (table.exit_code, "failed" in table.stdout) == (1, True)


def test_an_error_is_one_line_with_field_and_reason(fewseg, server, files):
    server.failures["RegisterTask"] = [
        status("INVALID_ARGUMENT", "No class.", reason="NO_CLASS", field="task.classes")
    ] * 2
    support = f"{files}/images/one.png box=coin:1,1,4,4"
    command = ("register", "coins", "--class", "coin", "--support", support)

    result = fewseg(*command)
    assert result.exit_code == 1
    assert result.stderr == "Error: No class. [NO_CLASS task.classes]\n"
    assert result.stdout == ""
    (told,) = lines_of(fewseg(*command, "--json"))
    assert (told["error"]["reason"], told["error"]["field"]) == ("NO_CLASS", "task.classes")


def test_what_is_written_wrongly_exits_with_2(fewseg, registered, files):
    wrong = [
        ("register", "coins"),
        ("register", "coins", "--class", "coin", "--support", "a.png circle=1"),
        ("register", "coins", "--class", "coin", "--support", f"{files}/gone.png box=coin:1,1,2,2"),
        ("add", "coins"),
        ("annotate", "coins", "a", "points=coin"),
        ("segment", "coins", f"{files}/*.gif", "--out", files / "out"),
        ("segment", "coins", files / "images", "--out", files / "out", "--size", "big"),
        ("no-such-command",),
        ("--repository", "x", "tasks"),
    ]
    for arguments in wrong:
        result = fewseg(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert "Traceback" not in result.output


def test_a_server_that_is_not_there_exits_with_3():
    result = CliRunner().invoke(app, ["--server", "127.0.0.1:1", "--timeout", "0.5", "info"])
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: No server answers at 127.0.0.1:1: ")
