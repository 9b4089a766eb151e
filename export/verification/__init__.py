# SPDX-License-Identifier: Apache-2.0
"""Compares what was exported with golden vectors made by the authors' own code."""
