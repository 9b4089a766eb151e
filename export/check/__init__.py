# SPDX-License-Identifier: Apache-2.0
"""Whether a model repository can be served, told without a server."""

from export.check.repository import check

__all__ = ["check"]
