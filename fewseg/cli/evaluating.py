"""The command that reads a served model on annotated data."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fewseg._channel import EMBEDDED
from fewseg.cli.session import JsonFlag, Session
from fewseg.evaluation import (
    AnnotatedFolder,
    CocoFolder,
    Scores,
    Source,
    Tally,
    VocFolder,
    annotation_rule,
    every_query_once,
    random_episodes,
    read_model,
)
from fewseg.results import Fusion


class Protocol(StrEnum):
    """Which data, and which of it is the query when."""

    FOLDER = "folder"
    PASCAL = "pascal-5i"
    COCO = "coco-20i"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(evaluate)


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder of annotated data.", file_okay=False)],
    shots: Annotated[int, typer.Option(min=1, help="Supports of each query.")] = 1,
    annotation: Annotated[
        str, typer.Option(help="mask, points:N, foreground-points:N, scribble or box.")
    ] = "mask",
    model: Annotated[str, typer.Option(help="Alias; the server's default without it.")] = "",
    cross_guided: Annotated[
        bool, typer.Option("--cross-guided", help="Weigh shots by what each says of all.")
    ] = False,
    server: Annotated[
        str | None, typer.Option(help="Address of the server; embedded if none is named.")
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="folder: each image the query once; others: random episodes.")
    ] = Protocol.FOLDER,
    fold: Annotated[int | None, typer.Option(min=0, max=3, help="Only its classes.")] = None,
    split: Annotated[str, typer.Option(help="val and val2014 without it.")] = "",
    episodes: Annotated[int, typer.Option(min=1, help="Of each seed.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs, with seeds from 0 on.")] = 5,
    json: JsonFlag = False,
) -> None:
    """Reads a model on annotated data: mean-IoU, FB-IoU and IoU of each class."""
    session = Session.of(context, json)
    _address(session, context, server)
    rule = annotation_rule(annotation)
    source = _source(protocol, data, fold, split)
    if protocol is Protocol.FOLDER:
        runs = [list(every_query_once(source, shots))]
    else:
        runs = [list(random_episodes(source, shots, episodes, seed)) for seed in range(seeds)]
    fusion: Fusion = "cross_guided" if cross_guided else "merged"
    bar, line = session.progress("Evaluating", sum(map(len, runs)))
    done = partial(bar.advance, line)
    with bar, session.client() as client:
        read = partial(read_model, client, source, rule=rule, model=model, fusion=fusion, done=done)
        tallies = [read(run) for run in runs]
    scores = Tally.scores(tallies)
    session.tell(_rounded(scores), _table(scores))


def _address(session: Session, context: typer.Context, server: str | None) -> None:
    """Points the session to ``server``, or to an embedded one unless a server was named anywhere.

    The session itself changes, not a copy: what ends the command names the session's address.
    """
    told = None if context.parent is None else context.parent.get_parameter_source("server")
    named = told is not None and told.name in ("COMMANDLINE", "ENVIRONMENT")
    session.target = server or (session.target if named else EMBEDDED)
    options = session.embedded_options or {"store": "memory"}
    session.embedded_options = options if session.target == EMBEDDED else {}


def _source(protocol: Protocol, data: Path, fold: int | None, split: str) -> Source:
    if protocol is Protocol.FOLDER:
        return AnnotatedFolder(data, fold)
    if fold is None:
        raise typer.BadParameter(f"--protocol {protocol.value} needs --fold 0, 1, 2 or 3.")
    if protocol is Protocol.PASCAL:
        return VocFolder(data, fold, split or "val")
    return CocoFolder(data, fold, split or "val2014")


def _rounded(scores: Scores) -> dict[str, object]:
    """The scores with two decimals."""
    rounded: dict[str, object] = {}
    for name, value in asdict(scores).items():
        if isinstance(value, dict):
            rounded[name] = {key: round(iou, 2) for key, iou in value.items()}
        else:
            rounded[name] = round(value, 2)
    return rounded


def _table(scores: Scores) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("CLASS")
    table.add_column("IOU", justify="right")
    for name, iou in scores.per_class.items():
        table.add_row(name, f"{iou:.1f}")
    for name, value, spread in (
        ("mean-IoU", scores.mean_iou, scores.mean_iou_std),
        ("FB-IoU", scores.fb_iou, scores.fb_iou_std),
    ):
        table.add_row(f"[bold]{name}", f"{value:.1f}" + (f" ± {spread:.1f}" if spread else ""))
    return table
