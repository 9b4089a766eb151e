"""The whole service inside another process: what ``Client(":embedded:")`` starts.

It is the same server, behind a Unix domain socket that only the present user
can reach. Settings come from the caller alone: neither the environment nor a
file has a say in somebody else's program.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from service.config import LONGEST_SOCKET_PATH, Settings, problems_of
from service.logs import get_logger
from service.wiring import build

#: What an application does not expect from a library: files, open ports, a long goodbye; and
#: threads that give way to its own.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "store": "memory",
    "host": "",
    "metrics_host": "",
    "drain_seconds": 2.0,
    "niceness": 0,
}
_SOCKET: Final = "fewseg.sock"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Running:
    """A server that runs in a thread of its own.

    Attributes:
        loop: Its event loop.
        ended: Set, on that loop, to stop it.
    """

    loop: asyncio.AbstractEventLoop
    ended: asyncio.Event


class EmbeddedService:
    """A running service; never closed, it ends when nobody refers to it, or with the process.

    Attributes:
        target: Where gRPC clients find it: ``unix:/...``.
    """

    def __init__(self, settings: Settings, folder: str) -> None:
        started: Future[_Running] = Future()
        thread = threading.Thread(
            target=_run, args=(settings, started), name="fewseg-embedded", daemon=True
        )
        thread.start()
        running = started.result()
        self.target = f"unix:{settings.unix_socket}"
        self._end = weakref.finalize(self, _end, running, thread, folder, os.getpid())
        # Finalizers run at exit as well, but after thread pools have closed, and
        # a graceful stop needs those; this hook comes before theirs, which the
        # engine's pool has set by now. A finalizer runs once.
        at_thread_exit = getattr(threading, "_register_atexit", None)
        if at_thread_exit is not None:
            at_thread_exit(self._end)

    def close(self) -> None:
        """Stops the service, waits for its thread, removes its folder. Idempotent."""
        self._end()


def start(**options: Any) -> EmbeddedService:
    """Starts a service in this process.

    Args:
        **options: Fields of ``service.config.Settings``, such as ``repository``. The store is
            ``memory`` unless it is named, and no port is opened unless one is.

    Raises:
        TypeError: There is no such setting.
        ValueError: A setting is wrong.
        FewSegError: The core cannot start: there is no model repository, say.
        SetupError: The settings ask for something that this machine does not have.
        ListenError: An address that was asked for cannot be listened on.
    """
    unknown = sorted(set(options) - set(Settings.model_fields))
    if unknown:
        raise TypeError(f"the embedded service has no setting {', '.join(unknown)}")
    folder = tempfile.mkdtemp(prefix="fewseg-", dir=_folder_for_sockets())
    try:
        defaults = {**_DEFAULTS, "unix_socket": Path(folder) / _SOCKET}
        return EmbeddedService(Settings(**{**defaults, **options}), folder)
    except ValidationError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError("; ".join(problems_of(error))) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _folder_for_sockets() -> str | None:
    """Where temporary folders are, unless that is too deep for the path of a socket."""
    deepest = len(os.fsencode(tempfile.gettempdir())) + len("/fewseg-12345678/") + len(_SOCKET)
    return "/tmp" if deepest > LONGEST_SOCKET_PATH else None


def _run(settings: Settings, started: Future[_Running]) -> None:
    try:
        asyncio.run(_serve(settings, started))
    except BaseException as error:
        if started.done():
            _log.error("embedded_service_failed", exc_info=error)
        else:
            started.set_exception(error)


async def _serve(settings: Settings, started: Future[_Running]) -> None:
    server = build(settings)
    await server.start()
    ended = asyncio.Event()
    started.set_result(_Running(asyncio.get_running_loop(), ended))
    await ended.wait()
    # Its only client has closed already.
    await server.stop(late_calls_seconds=0.0)


def _end(running: _Running, thread: threading.Thread, folder: str, process: int) -> None:
    if os.getpid() != process:
        return  # a fork: thread and folder are its parent's
    with suppress(RuntimeError):  # the loop has ended by itself
        running.loop.call_soon_threadsafe(running.ended.set)
    # Garbage may be collected in any thread.
    if thread is not threading.current_thread():
        thread.join()
    shutil.rmtree(folder, ignore_errors=True)
