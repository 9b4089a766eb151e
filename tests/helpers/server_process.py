"""`fewseg-serve` as a process of its own."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(repository, *arguments):
    return [
        *(sys.executable, "-m", "service.main", "--repository", str(repository)),
        *("--port", "0", "--metrics-port", "0", *arguments),
    ]


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEWSEG_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


@contextmanager
def serving(repository, *arguments):
    """A server process, and what it said when it was ready."""
    process = subprocess.Popen(
        command(repository, *arguments),
        cwd=repository.parent,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, lines_until(process, "serving")
    finally:
        process.kill()
        process.communicate()


def lines_until(process, event):
    """Reads the log up to an event, and returns its line."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if json.loads(line)["event"] == event:
            return json.loads(line)
    raise AssertionError("".join(seen))
