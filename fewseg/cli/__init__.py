"""The ``fewseg`` command; docs/cli.md describes it."""

from fewseg.cli.app import app, main

__all__ = ["app", "main"]
