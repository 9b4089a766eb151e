from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from load_samples import EXHAUSTED, OK, records, result, scenario
from typer.testing import CliRunner

from loadtests import results, scenarios
from loadtests.cli import app
from loadtests.reports import write_report
from loadtests.results import Result, repeat_of, result_of
from loadtests.sampling import ResourceUse
from loadtests.sweeps import Knee, knee


def _at(rate: float, p99: float, answered: float = 1.0, lag: float = 0.0) -> Result:
    chosen = scenario(rate=rate)
    count = int(rate * 10)
    codes = np.where(np.arange(count) < answered * count, OK, EXHAUSTED).tolist()
    rows = records(np.full(count, p99), codes=codes, lag=lag)
    return result_of(chosen, "embedded", [repeat_of(rows, chosen, ResourceUse())])


def _svgs(page: str) -> list[ElementTree.Element]:
    parts = page.split("<svg")[1:]
    return [ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in parts]


def test_a_report_shows_figures_and_three_plots(tmp_path: Path) -> None:
    write_report([result()], tmp_path / "report.html")

    page = (tmp_path / "report.html").read_text()
    assert len(_svgs(page)) == 3
    for words in ("A sample", "Latency by percentile", "Where the time goes", "By second"):
        assert words in page
    assert f"{result().repeats[0].latency['p50'] * 1e3:.1f}" in page
    assert "Invalid." not in page


def test_a_report_says_that_a_run_is_invalid(tmp_path: Path) -> None:
    chosen = scenario()
    behind = repeat_of(records([0.03] * 100, lag=0.5), chosen, ResourceUse())

    write_report([result_of(chosen, "embedded", [behind])], tmp_path / "report.html")

    assert "the generator fell behind" in (tmp_path / "report.html").read_text()


def test_a_sweep_is_plotted_against_its_rates(tmp_path: Path) -> None:
    write_report([_at(10, 0.02), _at(20, 0.03), _at(30, 0.4)], tmp_path / "report.html")

    page = (tmp_path / "report.html").read_text()
    assert "Latency against offered rate" in page
    assert "until 20.0 requests a second" in page
    assert len(_svgs(page)) == 1 + 3 * 3


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(10, 0.02, 1.0), (20, 0.03, 1.0), (30, 0.2, 1.0)], Knee(20.0, reached=True)),
        ([(10, 0.02, 1.0), (20, 0.03, 0.9)], Knee(10.0, reached=True)),
        ([(10, 0.02, 0.5)], Knee(0.0, reached=True)),
        ([(1, 0.02, 1.0), (2, 0.03, 1.0)], Knee(2.0, reached=False)),
    ],
)
def test_the_knee_is_the_last_rate_that_is_kept_up_with(
    points: list[tuple[float, float, float]], expected: Knee
) -> None:
    assert knee([_at(*point) for point in points]) == expected


def test_a_knee_that_was_not_reached_is_not_named(tmp_path: Path) -> None:
    easy = [_at(1, 0.02), _at(2, 0.02)]

    write_report(easy, tmp_path / "report.html")

    assert knee(easy).words == "No knee was reached up to 2.0 requests a second"
    assert knee(easy).words in (tmp_path / "report.html").read_text()


def test_rates_at_which_the_generator_fell_behind_say_nothing_of_the_knee() -> None:
    easy, behind = _at(10, 0.02), _at(20, 0.9, lag=0.5)

    assert not behind.valid
    assert knee([easy, behind]) == Knee(10.0, reached=False)
    assert knee([behind]) == Knee(0.0, reached=False)
    assert "at no rate" in knee([behind]).words


def test_a_rate_at_which_no_request_was_due_says_nothing_of_the_knee() -> None:
    idle = _at(0.01, 0.0)

    assert idle.repeats[0].offered_rate == 0
    assert knee([idle, _at(10, 0.02), _at(20, 0.03, 0.5)]) == Knee(10.0, reached=True)
    assert knee([idle]) == Knee(0.0, reached=False)


def test_every_scenario_of_the_folder_can_be_read() -> None:
    assert len(scenarios.names()) >= 9
    for name in scenarios.names():
        assert scenarios.load(name).name == name


def test_a_misspelt_key_of_a_scenario_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\ndescription = "d"\n[load]\nrates = 3.0\n')

    with pytest.raises(scenarios.ScenarioError, match="rates"):
        scenarios.load(str(path))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'title = "\xff"', "utf-8"),
        (b'title = "t"\ndescription = "d"\n[load]\nrate = inf\n', "rate is inf"),
        (
            b'title = "t"\ndescription = "d"\n[load]\nrate = 1.0\n[work]\nsizes = [[0, 9]]\n',
            "work.sizes",
        ),
        (
            b'title = "t"\ndescription = "d"\n[load]\nrate = 1.0\n[work]\nsizes = []\n',
            "work.sizes",
        ),
    ],
)
def test_what_is_no_scenario_is_said_to_be_none(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)

    with pytest.raises(scenarios.ScenarioError, match=named):
        scenarios.load(str(path))


def test_a_scenario_without_a_rate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\ndescription = "d"\n[load]\nseconds = 3.0\n')

    with pytest.raises(scenarios.ScenarioError, match="rate"):
        scenarios.load(str(path))


def test_compare_ends_with_the_status_of_its_verdict(tmp_path: Path) -> None:
    results.write(result(), tmp_path / "a")
    results.write(result(scale=1.1, seed=1), tmp_path / "b")
    results.write(
        msgspec.structs.replace(result(), scenario=scenarios.load("batch")), tmp_path / "c"
    )
    runner = CliRunner()

    def status(after: str) -> int:
        return runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / after)]).exit_code

    assert status("a") == 0
    assert status("b") == 1
    assert status("c") == 2
