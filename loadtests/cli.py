"""The ``fewseg-loadtest`` command."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from loadtests import comparing, results, runs, scenarios, sweeps
from loadtests.bench.document import DocumentError
from loadtests.bench.rows import RowError
from loadtests.cold import run_cold_starts
from loadtests.processes import GeneratorError
from loadtests.reports import write_report
from loadtests.seeds import Seeds
from loadtests.servers import ServerError
from loadtests.targets import Connection, Target

#: Exit statuses: answers were lost; a wrong argument or server; the generator fell behind.
_LOST = 1
_WRONG = 2
_INVALID = 4

#: What a person or a server did wrong; anything else is a fault of this tool, and is shown whole.
_FAULTS = (
    scenarios.ScenarioError,
    results.ResultError,
    ServerError,
    GeneratorError,
    RowError,
    DocumentError,
    OSError,
)

#: What a supervisor or a closed terminal ends the command with.
_ENDING = (signal.SIGTERM, signal.SIGHUP)

app = typer.Typer(
    help="Measures a FewSeg server: open loop, latency from the intended send time.",
    no_args_is_help=True,
    add_completion=False,
)
_out = Console()
_err = Console(stderr=True)

Server = Annotated[
    str, typer.Option(help="host:port of a server that runs; without it one is started here.")
]
Tls = Annotated[bool, typer.Option("--tls", help="Encrypt the connection to --server.")]
Roots = Annotated[
    Path | None, typer.Option("--tls-roots", help="PEM file of the authorities to trust.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File that holds the token for --server; else FEWSEG_TOKEN is used."),
]
Engine = Annotated[str, typer.Option(help="Engine of the server that is started here.")]
Flag = Annotated[
    list[str] | None,
    typer.Option(
        "--flag", help="NAME=VALUE: a further flag of the server that is started here; repeatable."
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for results, one sub-folder per run.")
]
Repeats = Annotated[int | None, typer.Option(min=1, help="Instead of the scenario's.")]
Seconds = Annotated[float | None, typer.Option(min=1.0, help="Instead of the scenario's.")]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0, max=2**53, help="Of the images, as result.json holds it; without: fresh ones."
    ),
]


@app.command("scenarios")
def list_scenarios() -> None:
    """Lists the scenarios that come along."""
    table = Table("scenario", "what it shows", box=None)
    for name in scenarios.names():
        table.add_row(name, scenarios.load(name).description)
    _out.print(table)


@app.command("run")
def run_scenario(
    scenario: Annotated[str, typer.Argument(help="Name, or a TOML file of one's own.")],
    server: Server = "",
    tls: Tls = False,
    tls_roots: Roots = None,
    token_file: TokenFile = None,
    engine: Engine = "embedded",
    flag: Flag = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Arrivals per second.")] = None,
    seconds: Seconds = None,
    repeats: Repeats = None,
    seed: Seed = None,
    output: Output = Path("loadtest-results"),
) -> None:
    """Runs a scenario, and writes its figures, raw histograms and report.

    Exit status: 0 fine, 1 answers were lost, 2 it could not run, 4 the generator fell behind.
    """

    def work() -> None:
        loaded = _loaded(scenario, flag, rate, seconds, repeats)
        target = _target(server, tls, tls_roots, token_file)
        seeds = Seeds(seed)
        if loaded.work.kind == "cold_start":
            if target is not None:
                raise scenarios.ScenarioError("a cold start needs a server that is started here")
            result = run_cold_starts(loaded, engine, _out.print, seeds)
        else:
            with runs.subject_of(loaded, target, engine) as subject:
                result = runs.run(loaded, subject, _out.print, seeds=seeds)
        folder = output / f"{loaded.name}-{_stamp()}"
        results.write(result, folder)
        write_report([result], folder / "report.html")
        _out.print(f"{folder}/result.json, report.html")
        _judge([result])

    _guarded(work)


@app.command()
def sweep(
    scenario: Annotated[str, typer.Argument(help="Name, or a TOML file of one's own.")],
    server: Server = "",
    tls: Tls = False,
    tls_roots: Roots = None,
    token_file: TokenFile = None,
    engine: Engine = "embedded",
    flag: Flag = None,
    rates: Annotated[
        str, typer.Option(help="Arrivals per second, comma-separated; without: up to the knee.")
    ] = "",
    seconds: Seconds = None,
    repeats: Repeats = None,
    seed: Seed = None,
    output: Output = Path("loadtest-results"),
) -> None:
    """Runs a scenario at ascending rates and finds the knee."""

    def work() -> None:
        loaded = _loaded(scenario, flag, None, seconds, repeats)
        if loaded.work.kind not in ("segment", "clicks"):
            raise scenarios.ScenarioError(f"{loaded.name} has no rate that could be swept")
        asked = _rates(rates)
        target = _target(server, tls, tls_roots, token_file)
        with runs.subject_of(loaded, target, engine) as subject:
            swept = sweeps.sweep(loaded, subject, asked, _out.print, Seeds(seed))
        folder = output / f"{loaded.name}-sweep-{_stamp()}"
        for result in swept:
            results.write(result, folder / f"{result.scenario.load.rate or 0.0:08.2f}")
        write_report(swept, folder / "report.html")
        _out.print(f"{sweeps.knee(swept).words}; {folder}/report.html")
        _judge(swept)

    _guarded(work)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="result.json, or its folder.")],
    after: Annotated[Path, typer.Argument(help="The same scenario, measured later.")],
    threshold: Annotated[
        float, typer.Option(min=0.0, help="Relative change that counts.")
    ] = comparing.THRESHOLD,
) -> None:
    """Compares two results.

    Exit status: 0 no worse, 1 worse, 2 not comparable, 3 too noisy to tell.
    """

    def work() -> None:
        compared = comparing.compare(results.read(before), results.read(after), threshold)
        table = Table("figure", "before", "after", "change", "noise", "verdict", box=None)
        for one in compared:
            table.add_row(
                one.name,
                f"{one.before:.2f} {one.unit}",
                f"{one.after:.2f} {one.unit}",
                f"{one.change:+.1%}",
                f"±{one.noise:.1%}",
                one.verdict.value,
            )
        _out.print(table)
        raise typer.Exit(comparing.exit_status(compared))

    _guarded(work)


@app.command()
def bench(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the figures as JSON.")
    ] = Path("loadtest-results/bench"),
    document: Annotated[
        Path | None, typer.Option(help="Markdown file whose table is brought up to date.")
    ] = None,
    engine: Engine = "embedded",
    only: Annotated[
        str,
        typer.Option(help="Rows to measure, comma-separated; empty for all. Not with --document."),
    ] = "",
) -> None:
    """Runs the short standard suite and prints its table, every figure beside its floor."""

    def work() -> None:
        from loadtests.bench.suite import run_suite

        chosen = [name.strip() for name in only.split(",") if name.strip()]
        run_suite(engine=engine, output=output, document=document, only=chosen, console=_out)

    _guarded(work)


def _loaded(
    name: str,
    flags: list[str] | None,
    rate: float | None,
    seconds: float | None,
    repeats: int | None,
) -> scenarios.Scenario:
    scenario = scenarios.load(name)
    load = scenario.load
    if rate is not None:
        load = msgspec.structs.replace(load, rate=rate, capacity_share=None)
    load = msgspec.structs.replace(
        load, seconds=seconds or load.seconds, repeats=repeats or load.repeats
    )
    server = dict(scenario.server)
    for flag in flags or []:
        key, separator, value = flag.partition("=")
        if not separator:
            raise scenarios.ScenarioError(f"--flag {flag!r} is not NAME=VALUE")
        server[key.lstrip("-")] = value
    return msgspec.structs.replace(scenario, load=load, server=server)


def _rates(listed: str) -> list[float]:
    try:
        rates = [float(one) for one in listed.split(",") if one.strip()]
    except ValueError:
        raise scenarios.ScenarioError(f"--rates {listed!r} is no list of numbers") from None
    for rate in rates:
        if not 0 < rate < math.inf:
            raise scenarios.ScenarioError(f"--rates: {rate:g} is no rate; it must be above 0")
    return rates


def _target(server: str, tls: bool, roots: Path | None, token_file: Path | None) -> Target | None:
    if not server:
        return None
    token = token_file.read_text().strip() if token_file else os.environ.get("FEWSEG_TOKEN", "")
    target = Target(server, tls or roots is not None, roots, token)
    connection = Connection(target)
    try:
        if not connection.serving(timeout=10.0):
            raise ServerError(f"{server} does not report SERVING")
    finally:
        connection.close()
    return target


def _guarded(work: Callable[[], None]) -> None:
    try:
        work()
    except _FAULTS as error:
        # One line, however long: a terminal wraps it, and who searches a log finds it whole.
        _err.print(f"fewseg-loadtest: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(_WRONG) from error


def _judge(found: Sequence[results.Result]) -> None:
    """Ends the command with the status of what was found."""
    if any(repeat.lost for result in found for repeat in result.repeats):
        raise typer.Exit(_LOST)
    if not all(result.valid for result in found):
        raise typer.Exit(_INVALID)


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S")


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the command by unwinding, so that whatever it started ends, too; later signals wait."""
    for name in _ENDING:
        signal.signal(name, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> None:
    """Runs the command."""
    for name in _ENDING:
        # Who started the command under nohup wants it to outlive the terminal.
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, _end)
    app()


if __name__ == "__main__":
    main()
