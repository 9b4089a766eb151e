"""What the commands share: the connection, and how things are said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fewseg._channel import TlsFiles
from fewseg.client import Client
from fewseg.errors import FewSegError, Unavailable

EXIT_SERVER_ERROR, EXIT_USAGE, EXIT_UNAVAILABLE = 1, 2, 3

#: The option that every command takes.
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]

_WIDE = 200
_ARRAYS = frozenset({"mask", "probabilities", "png", "run_lengths"})


@dataclass
class Session:
    """One run of the command.

    Attributes:
        target: Address of the server, or ``":embedded:"``.
        timeout: Seconds that a call may take.
        tls: See ``Client``.
        tenant: Owner of the tasks.
        embedded_options: Settings of the embedded service.
        json: Whether to write JSON lines and nothing else to stdout.
    """

    target: str
    timeout: float
    tls: bool | TlsFiles | None = None
    tenant: str = "default"
    embedded_options: Mapping[str, Any] = field(default_factory=dict)
    json: bool = False

    @staticmethod
    def of(context: typer.Context, json: bool) -> Session:
        """The session of a command, which may be told to write JSON on its own."""
        session: Session = context.ensure_object(Session)
        session.json |= json
        return session

    def client(self) -> Client:
        """Opens the connection."""
        return Client(
            self.target,
            timeout=self.timeout,
            tls=self.tls,
            tenant=self.tenant,
            **self.embedded_options,
        )

    def tell(self, value: Any, shown: RenderableType) -> None:
        """Writes a value, as JSON or as it is shown to people."""
        if self.json:
            typer.echo(json.dumps(plain(value), ensure_ascii=False))
        else:
            stdout().print(shown)

    def progress(self, what: str, total: int | None) -> tuple[Progress, Any]:
        """A progress bar on stderr that vanishes when it is done; silent with JSON."""
        console = Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=self.json or not console.is_terminal,
        )
        return bar, bar.add_task(what, total=total)


def stdout() -> Console:
    """Where answers go; as wide as they are unless a person's terminal sets the width."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE, highlight=False)


def stderr() -> Console:
    """Where problems go, one line each however long."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def plain(value: Any) -> Any:
    """Turns an answer into what JSON can hold; arrays and encoded masks are left out."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    names = getattr(value, "__dataclass_fields__", None)
    if names is None:
        return value
    return {name: plain(getattr(value, name)) for name in names if name not in _ARRAYS}


def plain_error(error: Exception) -> dict[str, Any]:
    """What JSON output says of an error."""
    if isinstance(error, FewSegError):
        return {
            "code": error.code,
            "reason": error.reason,
            "message": error.message,
            "field": error.field,
            "retry_after": error.retry_after,
        }
    return {
        "code": "INVALID_ARGUMENT",
        "reason": "LOCAL",
        "message": one_line(error),
        "field": "",
        "retry_after": None,
    }


def one_line(error: Exception) -> str:
    """An error in one line: where, what, and the facts that the server gave."""
    if isinstance(error, FewSegError):
        text = error.message
        facts = " ".join(filter(None, (error.reason or error.code, error.field)))
        text = f"{text} [{facts}]"
    else:
        text = str(error) or type(error).__name__
    where = ", ".join(getattr(error, "__notes__", ()))
    return " ".join((f"{where}: {text}" if where else text).split())


def report_error(error: Exception, session: Session | None) -> int:
    """Says on stderr (and, with JSON, on stdout) what went wrong; returns the exit status."""
    if session is not None and session.json:
        typer.echo(json.dumps({"error": plain_error(error)}, ensure_ascii=False))
    text = one_line(error)
    if session is not None and isinstance(error, Unavailable) and not error.reason:
        text = f"No server answers at {session.target}: {text}"
    line = Text(f"Error: {text}", style="bold red")
    stderr().print(line)
    if isinstance(error, Unavailable):
        return EXIT_UNAVAILABLE
    return EXIT_SERVER_ERROR if isinstance(error, FewSegError) else EXIT_USAGE
