"""The command line: global options, and how errors end it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fewseg._channel import DEFAULT_TARGET, DEFAULT_TIMEOUT, EMBEDDED, TlsFiles
from fewseg.cli import evaluating, segmenting, serving, tasks
from fewseg.cli.session import Session, report_error
from fewseg.errors import FewSegError


class _Commands(TyperGroup):
    """Ends commands with one clear line and an exit status instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (FewSegError, OSError, TypeError, ValueError) as error:
            raise typer.Exit(report_error(error, ctx.find_object(Session))) from error


app = typer.Typer(
    name="fewseg",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Segment anything from a few examples.",
)


@app.callback()
def connect(
    context: typer.Context,
    server: Annotated[
        str,
        typer.Option(
            envvar="FEWSEG_SERVER",
            help=f"Address of the server, or {EMBEDDED} to run one inside this command.",
        ),
    ] = DEFAULT_TARGET,
    repository: Annotated[
        Path | None,
        typer.Option(help=f"Model repository of the {EMBEDDED} service."),
    ] = None,
    store_path: Annotated[
        Path | None,
        typer.Option(help=f"File in which the {EMBEDDED} service keeps tasks."),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Owner of the tasks.")] = "default",
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a call may take.")
    ] = DEFAULT_TIMEOUT,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt the connection.")] = False,
    tls_roots: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities to trust; implies --tls.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Segment anything from a few examples."""
    context.obj = Session(
        target=server,
        timeout=timeout,
        tls=TlsFiles(roots=tls_roots) if tls_roots is not None else tls,
        tenant=tenant,
        embedded_options=_embedded_options(server, repository, store_path),
        json=json,
    )


def _embedded_options(
    server: str, repository: Path | None, store_path: Path | None
) -> dict[str, Any]:
    if server != EMBEDDED:
        if repository is not None or store_path is not None:
            raise typer.BadParameter(f"--repository and --store-path need --server {EMBEDDED}.")
        return {}
    store: dict[str, Any] = {"store": "memory"}
    if store_path is not None:
        store = {"store": "sqlite", "store_path": store_path}
    return store if repository is None else {**store, "repository": repository}


tasks.add_to(app)
segmenting.add_to(app)
evaluating.add_to(app)
serving.add_to(app)


def main() -> None:
    """The ``fewseg`` command."""
    app()
