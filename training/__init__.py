# SPDX-License-Identifier: Apache-2.0
"""The recipe of FewSeg's default model: distil a trunk from a teacher, train it on episodes."""
