# SPDX-License-Identifier: Apache-2.0
"""CyCTR (Zhang et al., NeurIPS 2021): query cells attend to support cells that they agree with."""
