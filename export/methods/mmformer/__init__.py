# SPDX-License-Identifier: Apache-2.0
"""MM-Former (Jiao et al., NeurIPS 2022): proposals of the query, matched with the supports.

A segmenter that knows no classes makes a hundred mask proposals of the query; what a task adds is
how much each of them looks like the annotated object.
"""
