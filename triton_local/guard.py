# SPDX-License-Identifier: Apache-2.0
"""Ends a server whose owner was killed: a process that waits for the end of its standard input."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

# The owner's end of the pipe closes with the owner, however that ends.
_SCRIPT: Final = """
read -r _
kill -s KILL -- "-$1" 2>/dev/null
rm -rf -- "$2" "$3"*
"""


class Guard:
    """Watches over a server for as long as its owner lives.

    Args:
        group: Process group of the server.
        regions: What the paths of its regions of shared memory begin with.
        folder: Its work folder.
    """

    def __init__(self, group: int, regions: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                _SCRIPT,
                "fewseg-triton-guard",
                str(group),
                str(folder),
                str(regions),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # What ends the owner's group must not end this.
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Ends the watch, and nothing else."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
