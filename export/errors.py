# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the way from a checkpoint to a model repository."""

from __future__ import annotations


class ExportError(Exception):
    """Base of all errors whose message is meant for the person at the command line."""


class CheckpointError(ExportError):
    """A checkpoint cannot be read, or is not what was asked for."""


class GraphError(ExportError):
    """A graph does not hold what the repository promises, or differs from its torch module."""


class RepositoryWriteError(ExportError):
    """A family could not be written; nothing of it is left behind."""


class GoldenError(ExportError):
    """A folder of golden vectors is not usable."""
