"""Commands about the server and its models."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fewseg.cli.session import JsonFlag, Session, stderr, stdout
from fewseg.results import ModelInfo


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(models)
    app.command()(info)


def models(
    context: typer.Context,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Make the server look into its repository again.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Lists the models that the server serves."""
    session = Session.of(context, json)
    problems: tuple[str, ...] = ()
    with session.client() as client:
        if refresh:
            refreshed = client.refresh_models()
            found, problems = refreshed.models, refreshed.problems
        else:
            found = client.models()
    if session.json:
        for model in found:
            session.tell(model, "")
        for problem in problems:
            session.tell({"problem": problem}, "")
    else:
        stdout().print(_model_table(found))
        for problem in problems:
            stderr().print(Text(f"Cannot be served: {problem}", style="yellow"))
    if problems:
        raise typer.Exit(1)


def _model_table(found: tuple[ModelInfo, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("MODEL", "FAMILY", "METHOD", "INPUT", "CLASSES", "DECISION", "SCORE", ""):
        table.add_column(heading)
    for model in found:
        size = "native" if model.input_size is None else "x".join(map(str, model.input_size))
        table.add_row(
            model.alias,
            model.family,
            model.method,
            size,
            model.class_handling,
            model.decision,
            model.score,
            "default" if model.default else "",
        )
    return table


def info(context: typer.Context, json: JsonFlag = False) -> None:
    """Shows versions and limits of the server."""
    session = Session.of(context, json)
    with session.client() as client:
        server = client.server_info()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("version", server.version)
    table.add_row("api", server.api_version)
    table.add_row("engine", server.engine)
    table.add_row("store", server.store)
    for name, limit in server.limits.items():
        table.add_row(f"limit {name}", f"{limit:,}")
    session.tell(server, table)
