"""Reports: one page, with its plots inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from loadtests import plots
from loadtests.results import Repeat, Result, problems
from loadtests.sweeps import knee

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Section:
    """One load of a report; plots are SVG, empty for none."""

    title: str
    repeats: Sequence[Repeat]
    codes: Sequence[str]
    percentiles: str
    stages: str
    series: str


def write_report(results: Sequence[Result], path: Path) -> None:
    """Writes the page of one result, or of a sweep's.

    Args:
        results: Of one scenario; several are shown against their offered rates.
        path: The file, overwritten.
    """
    first = results[0]
    swept = len(results) > 1
    bend = knee(results) if swept else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=first.scenario.title,
        description=first.scenario.description,
        created=first.created,
        engine=first.engine,
        seed=first.seed,
        machine=first.machine,
        deadline=f"{first.scenario.load.deadline_seconds:g}",
        problems=problems(repeat for result in results for repeat in result.repeats),
        rates=plots.latency_by_rate(results, bend.rate if bend.reached else 0.0) if bend else "",
        knee=bend.words if bend else "",
        sections=[_section(result, swept) for result in results],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _section(result: Result, swept: bool) -> Section:
    rate = result.scenario.load.rate
    title = f"{rate:.1f} requests a second" if swept and rate else "Figures"
    return Section(
        title=title,
        repeats=result.repeats,
        codes=sorted({code for repeat in result.repeats for code in repeat.codes}),
        percentiles=plots.latency_by_percentile(result),
        stages=plots.stage_breakdown(result),
        series=plots.time_series(result.repeats[0]),
    )
