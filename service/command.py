"""The ``fewseg-serve`` command, which says what is missing where the service is not installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command.

    Raises:
        SystemExit: Its status; 1 if the libraries of the extra are not installed.
    """
    try:
        from service.main import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"fewseg-serve: {error.name} is not installed; "
            "pip install 'fewseg[serve]', or in a checkout: pip install '.[serve]'\n"
        )
        raise SystemExit(1) from None
    run()
