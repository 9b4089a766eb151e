# SPDX-License-Identifier: Apache-2.0
"""HSNet (Min, Kang and Cho, ICCV 2021): hypercorrelations squeezed by 4-D convolutions.

Layers of a frozen trunk are compared, every position of the query with every position of a support
under its mask. The correlations of three levels are squeezed over the support's positions, and come
to a map of the query. Each shot makes its own mask, and the masks vote.
"""
