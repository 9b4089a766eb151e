"""What registering saves, by method: ``python -m loadtests.together REPOSITORY``.

Without tasks, support and query go through the network together, every time: k images with their
annotations, then the query. With a task, only the query does. Both are run straight through the
graphs of each family of a repository, with no service around them; medians of several rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtests.families import Served, families_of

_SUPPORT: Final = ("features", "guide")
_QUERY: Final = ("features", "query_features", "decode")


@dataclass(frozen=True, slots=True)
class Gain:
    """What one family takes.

    Attributes:
        method: Of the family.
        shots: Of the task.
        support: Seconds for one support image.
        merge: Seconds for the `merge` graph: one run, or one for each shot that it judges.
        query: Seconds for one query under the task.
    """

    method: str
    shots: int
    support: float
    merge: float
    query: float

    @property
    def together(self) -> float:
        """Seconds for a query whose supports come with it."""
        return self.shots * self.support + self.merge + self.query

    @property
    def times(self) -> float:
        """How many times faster a query is under a task."""
        return self.together / self.query


def gain_of(family: Served, size: tuple[int, int], shots: int, rounds: int) -> Gain:
    """Measures one family.

    Args:
        family: Its graphs.
        size: Rows and columns of images where the network takes any.
        shots: Of the task.
        rounds: That are measured, after one that is not.
    """
    taken: dict[str, list[float]] = {}
    for number in range(1 + rounds):
        family.episode(size, ways=1, shots=shots)
        for role, seconds in family.seconds.items() if number else ():
            taken.setdefault(role, []).append(seconds)
    medians = {role: statistics.median(times) for role, times in taken.items()}
    total = {
        "support": sum(medians[role] for role in _SUPPORT),
        "query": sum(medians.get(role, 0.0) for role in _QUERY),
    }
    judged = shots if family.parameter("merge_judged") else 1
    merge = judged * medians.get("merge", 0.0)
    return Gain(family.parameter("method"), shots, merge=merge, **total)


def line_of(gain: Gain) -> str:
    """One row, under `HEADINGS`."""
    parts = (gain.support, gain.merge, gain.query, gain.together)
    times = [f"{1000 * seconds:.1f} ms" for seconds in parts]
    return _aligned([gain.method, str(gain.shots), *times, f"{gain.times:.2f} x"])


def _aligned(cells: Sequence[str]) -> str:
    method, shots, *numbers = cells
    return f"{method:<12}{shots:>6}" + "".join(f"{number:>13}" for number in numbers)


HEADINGS: Final = _aligned(["method", "shots", "support", "merge", "query", "together", "gain"])


def _gains(options: argparse.Namespace) -> Iterator[Gain]:
    for family in families_of(options.repository, options.threads):
        for shots in options.shots:
            yield gain_of(family, (options.rows, options.columns), shots, options.rounds)


def main() -> None:
    """Prints a row as soon as it is measured."""
    parser = argparse.ArgumentParser("loadtests.together", description=__doc__)
    parser.add_argument("repository", type=Path, nargs="?", default=Path("model_repository"))
    parser.add_argument("--rows", type=int, default=375, help="of images of any size")
    parser.add_argument("--columns", type=int, default=500, help="of images of any size")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=5, help="that are measured, after one more")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: its choice")
    options = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    console.print(HEADINGS)
    for gain in _gains(options):
        console.print(line_of(gain))


if __name__ == "__main__":
    main()
