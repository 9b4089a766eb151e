"""Structured logs.

Loggers write into the standard library's logging, so that an application that
runs the service in-process keeps the last word on what is shown and where.
Only ``fewseg-serve`` attaches a handler.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal, TextIO

import structlog

LogFormat = Literal["json", "console"]

_TO_LOGGING: Final[list[structlog.typing.Processor]] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.render_to_log_kwargs,
]

#: Libraries whose DEBUG lines say nothing about this service.
_TALKATIVE: Final = ("asyncio", "grpc", "PIL")


def get_logger(name: str) -> Any:
    """Returns a logger: the event is a word, what belongs to it are keyword arguments."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=_TO_LOGGING,
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def configure(level: str, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Sends everything that is logged to one stream, a line each.

    Args:
        level: Least level that is shown, such as "INFO".
        log_format: JSON objects, or text for people.
        stream: Where to; standard error if None.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(log_format, colours=target.isatty()),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))


def _renderers(log_format: LogFormat, *, colours: bool) -> list[structlog.typing.Processor]:
    if log_format == "console":
        return [
            structlog.dev.ConsoleRenderer(
                colors=colours, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
