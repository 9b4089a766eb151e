# SPDX-License-Identifier: Apache-2.0
"""A real Triton Inference Server on this machine, without a container, for development and tests.

Production runs NVIDIA's image with the same repository; see docs/triton.md.
"""

from triton_local.environment import Environment, EnvironmentProblem, ensure_environment
from triton_local.server import LocalTriton, TritonProblem

__all__ = [
    "Environment",
    "EnvironmentProblem",
    "LocalTriton",
    "TritonProblem",
    "ensure_environment",
]
