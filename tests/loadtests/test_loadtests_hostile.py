"""What the command says to those who ask for what cannot be: one line, and status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from load_samples import result
from rich.console import Console
from typer.testing import CliRunner

from loadtests import results
from loadtests.bench import suite
from loadtests.bench.document import BEGIN, END
from loadtests.bench.rows import Row
from loadtests.cli import app
from loadtests.servers import ServerError
from service import embedded
from tests.helpers.tiny_repository import write_tiny_repository

DOCUMENT = f"# Before\n{BEGIN}\nthe table\n{END}\n"


def _refusal(*arguments: object) -> str:
    """The one line that the command ends with."""
    ended = CliRunner().invoke(app, [str(one) for one in arguments])
    assert ended.exit_code == 2, ended.output
    (line,) = ended.stderr.splitlines()
    assert line.startswith("fewseg-loadtest: ")
    return line


def test_a_row_that_does_not_exist_is_refused_and_the_document_kept(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(DOCUMENT)

    line = _refusal("bench", "--only", "foo,overhead", "--document", document, "-o", tmp_path)

    assert "no row foo" in line
    assert all(name in line for name in ("overhead", "throughput", "peers"))
    assert document.read_text() == DOCUMENT


def test_a_document_does_not_lose_the_rows_that_are_not_measured(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(DOCUMENT)

    line = _refusal("bench", "--only", "start", "--document", document, "-o", tmp_path)

    assert "would lose" in line
    assert document.read_text() == DOCUMENT


@pytest.mark.parametrize("content", [b"no marks", b"\xff", None])
def test_a_document_without_a_place_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr(suite, "open_stand", lambda _: pytest.fail("measured"))
    document = tmp_path / "performance.md"
    if content is not None:
        document.write_bytes(content)

    assert str(document) in _refusal("bench", "--document", document, "-o", tmp_path)


@pytest.mark.parametrize("name", ["memory", "start"])
def test_a_row_whose_server_does_not_start_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(engine: str) -> Row:
        raise ServerError(f"{engine} does not serve")

    monkeypatch.setitem(suite._ON_THEIR_OWN, name, fail)
    monkeypatch.setattr(suite, "_busy_cores", lambda: 0.0)

    found = suite.run_suite(
        engine="embedded", output=tmp_path, document=None, only=[name], console=Console(quiet=True)
    )

    (row,) = found.rows
    assert (row.name, row.what, row.met) == (name, name, None)
    assert row.note == "embedded does not serve"


@pytest.mark.parametrize("rates", ["0,-1", "5,0", "nan", "inf", "ten"])
def test_rates_that_are_none_are_refused(rates: str) -> None:
    assert "--rates" in _refusal("sweep", "register-once-1-shot", "--rates", rates)


def test_a_task_that_the_server_refuses_is_told(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_tiny_repository(repository)
    service = embedded.start(repository=repository, limits={"supports": 2})
    try:
        line = _refusal(
            "run", "register-once-5-shots", "--server", service.target, "--seconds", 1,
            "-o", tmp_path / "results",
        )  # fmt: skip
    finally:
        service.close()

    assert "RegisterTask" in line
    assert "supports" in line


def test_a_scenario_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b'title = "\xe9"')

    assert str(path) in _refusal("run", path)


@pytest.mark.parametrize("fault", ["p50", "repeats", "schema"])
def test_a_result_that_cannot_be_used_is_refused(tmp_path: Path, fault: str) -> None:
    results.write(result(), tmp_path / "good")
    content = json.loads(results.write(result(), tmp_path / "bad").read_text())
    if fault == "p50":
        del content["repeats"][0]["latency"]["p50"]
    else:
        content[fault] = {"repeats": [], "schema": 7}[fault]
    (tmp_path / "bad" / "result.json").write_text(json.dumps(content))

    for pair in (("good", "bad"), ("bad", "good")):
        assert fault in _refusal("compare", *(tmp_path / name for name in pair))
