"""The ``fewseg-serve`` command."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from service import logs
from service.config import PROGRAM, VERSION, CommandLine, Settings, as_toml, load
from service.core.errors import FewSegError
from service.server import ListenError, Server

_FAILED: Final = 1

_log = logs.get_logger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends the process at once.

    Args:
        arguments: The flags; those of the process if None.

    Raises:
        SystemExit: 0 after a graceful stop, 1 when the server cannot start, 2 when
            the settings are wrong.
    """
    command = load(sys.argv[1:] if arguments is None else arguments)
    if _only_prints(command):
        return
    settings = command.settings()
    logs.configure(settings.log_level, settings.log_format)
    # Engines and stores are imported here: --help and --version need none of them.
    from service.wiring import SetupError

    try:
        asyncio.run(serve(settings))
    except (FewSegError, ListenError, SetupError) as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        raise SystemExit(_FAILED) from error


def _only_prints(command: CommandLine) -> bool:
    if command.version:
        sys.stdout.write(f"{VERSION}\n")
    elif command.print_config:
        sys.stdout.write(as_toml(command.settings()))
    return command.version or command.print_config


async def serve(settings: Settings) -> None:
    """Runs a server until a signal ends it.

    Raises:
        SetupError: The settings ask for something that this machine does not have.
        ListenError: An address cannot be listened on.
        FewSegError: The core cannot start.
    """
    from service.wiring import build

    ended = asyncio.Event()
    server = build(settings)
    refreshes: set[asyncio.Task[None]] = set()
    _handle_signals(server, ended, refreshes)
    if not await _started(server, ended):
        return
    # Modules and models stay for good: the collector need not look at them over and over.
    gc.collect()
    gc.freeze()
    _log.info("serving", port=server.port, metrics_port=server.metrics_port)
    await ended.wait()
    _log.info("stopping")
    await asyncio.gather(*refreshes)
    await server.stop()
    _log.info("stopped")


async def _started(server: Server, ended: asyncio.Event) -> bool:
    """Starts the server, unless a signal ends it while its models load."""
    starting = asyncio.create_task(server.start())
    ending = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            return True
        return False
    finally:
        starting.cancel()
        ending.cancel()
        await asyncio.gather(starting, ending, return_exceptions=True)


def _handle_signals(
    server: Server, ended: asyncio.Event, refreshes: set[asyncio.Task[None]]
) -> None:
    loop = asyncio.get_running_loop()

    def end(number: int) -> None:
        if ended.is_set():
            # Whoever asks twice does not want to wait; what is kept is kept already.
            os._exit(128 + number)
        ended.set()

    def refresh() -> None:
        task = loop.create_task(server.refresh())
        refreshes.add(task)
        task.add_done_callback(refreshes.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, refresh)


if __name__ == "__main__":
    main()
