"""What registering saves, measured graph by graph on every kind of family."""

import re

import pytest

from loadtests import together
from loadtests.families import families_of
from loadtests.together import HEADINGS, Gain, gain_of, line_of
from tests.helpers.tiny_repository import write_tiny_repository

KINDS = {
    "plain": {},
    "rich": {"binary": True, "stack": True, "query_features": True},
    "told": {"extent": True, "letterbox": True},
    "stored": {"positions": True},
    "joint": {"merge": "joint"},
    "judged": {"merge": "judged"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_family_is_run(tmp_path, kind):
    write_tiny_repository(tmp_path, kind, **KINDS[kind])
    (family,) = families_of(tmp_path, threads=1)
    gain = gain_of(family, (40, 40), shots=3, rounds=2)
    assert (gain.merge > 0) == kind.startswith("j")
    assert gain.times > 1


@pytest.mark.parametrize(("kind", "runs"), [("joint", 1), ("judged", 3)])
def test_a_graph_that_judges_shots_runs_for_each(tmp_path, monkeypatch, kind, runs):
    write_tiny_repository(tmp_path, kind, **KINDS[kind])
    (family,) = families_of(tmp_path, threads=1)
    episode = family.episode

    def episode_in_seconds(*asked, **named):
        episode(*asked, **named)
        family.seconds = dict.fromkeys(family.seconds, 2.0)

    monkeypatch.setattr(family, "episode", episode_in_seconds)
    assert gain_of(family, (40, 40), shots=3, rounds=1).merge == 2.0 * runs


def test_a_gain_is_what_all_shots_cost_beside_the_query():
    gain = Gain("panet", shots=5, support=2.0, merge=1.0, query=4.0)
    assert gain.together == 15.0
    assert gain.times == 3.75
    cells = ["panet", "5", "2000.0 ms", "1000.0 ms", "4000.0 ms", "15000.0 ms", "3.75 x"]
    assert re.split(r"\s{2,}", line_of(gain)) == cells
    assert len(line_of(gain)) == len(HEADINGS)


def test_a_row_is_printed_as_soon_as_it_is_measured(tmp_path, monkeypatch, capsys):
    write_tiny_repository(tmp_path, "tiny")
    printed = []

    def measured(family, size, shots, rounds):
        printed.append(capsys.readouterr().out.splitlines())
        assert (size, rounds) == ((375, 500), 2)
        return Gain("panet", shots, support=1.0, merge=0.0, query=1.0)

    monkeypatch.setattr(together, "gain_of", measured)
    monkeypatch.setattr("sys.argv", ["together", str(tmp_path), "--rounds", "2"])
    together.main()
    printed.append(capsys.readouterr().out.splitlines())
    once, five = (Gain("panet", shots, 1.0, 0.0, 1.0) for shots in (1, 5))
    assert printed == [[HEADINGS], [line_of(once)], [line_of(five)]]
