# SPDX-License-Identifier: Apache-2.0
"""Who made a family."""

from __future__ import annotations

from importlib.metadata import version


def exporter_version() -> str:
    """Returns name and version of this exporter."""
    return f"fewseg-export {version('fewseg')}"
