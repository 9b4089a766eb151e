"""What registering saves, measured graph by graph on every kind of family."""

import pytest

from loadtests.families import families_of
from loadtests.together import Gain, gain_of, table_of
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
    assert f"{gain.times:.2f} x" in [str(cell) for cell in table_of([gain]).columns[-1].cells]


def test_a_gain_is_what_all_shots_cost_beside_the_query():
    gain = Gain("panet", shots=5, support=2.0, merge=1.0, query=4.0)
    assert gain.together == 15.0
    assert gain.times == 3.75
