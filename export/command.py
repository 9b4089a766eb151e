"""The ``fewseg-export`` command, which says what is missing where torch is not installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command.

    Raises:
        SystemExit: Its status; 1 if the libraries of the extra are not installed.
    """
    try:
        from export.cli import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"fewseg-export: {error.name} is not installed; "
            "pip install 'fewseg[export]', or in a checkout: pip install '.[export]'\n"
        )
        raise SystemExit(1) from None
    run()
