"""Whether two results were measured alike, so that what differs is the server's doing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loadtests.results import Result, ResultError, problems

#: How often something was measured and by what: that changes the spread, not what is measured.
_FREE = frozenset({"repeats", "processes", "lag_limit_seconds"})
#: Flags that say where a server or its files are.
_PLACES = ("address", "host", "port", "path", "socket", "repository")


def check_comparable(before: Result, after: Result) -> None:
    """Makes sure that two results can be compared.

    Another machine, address or model repository is fine, and so are other images: that a result
    was measured later, or elsewhere, is what people compare.

    Raises:
        ResultError: They were not measured alike, or one is invalid.
    """
    if before.scenario.name != after.scenario.name:
        raise ResultError(
            f"{before.scenario.name} and {after.scenario.name} are different scenarios"
        )
    differences = list(_differences(before, after))
    if differences:
        raise ResultError(
            f"the results of {before.scenario.name} were not measured alike: "
            + "; ".join(differences)
        )
    for result in (before, after):
        if not result.valid:
            raise ResultError(
                f"the run of {result.created} is invalid: " + "; ".join(problems(result.repeats))
            )


def _differences(before: Result, after: Result) -> Iterator[str]:
    old, new = _conditions(before), _conditions(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} {_shown(old.get(name))} and {_shown(new.get(name))}"


def _conditions(result: Result) -> dict[str, Any]:
    """Everything that must be equal, by name."""
    scenario = result.scenario
    load = msgspec.structs.asdict(scenario.load)
    if scenario.load.capacity_share is not None:
        # Then the rate was measured, and a faster server is asked for more.
        load.pop("rate")
    flags = {
        f"flag {name}": value
        for name, value in scenario.server.items()
        if not name.endswith(_PLACES)
    }
    named = {name: value for name, value in load.items() if name not in _FREE}
    return {"engine": result.engine} | named | msgspec.structs.asdict(scenario.work) | flags


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
