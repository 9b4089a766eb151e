# SPDX-License-Identifier: Apache-2.0
"""The network of MM-Former with the keys of the official checkpoints."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from export.methods.mmformer.backbones import DilatedBackbone, Maps, PaperBackbone
from export.methods.mmformer.mask_decoder import PROPOSALS, MaskDecoder
from export.methods.mmformer.matching import Alignment, self_aligned
from export.methods.mmformer.parts import WIDTH, Resize
from export.methods.mmformer.pixel_decoder import PixelDecoder

LEVELS = 3
"""Maps that segmenter and matching work on, coarsest first."""

_HIDDEN = 500


class Variant(StrEnum):
    """Which network a checkpoint belongs to."""

    #: The paper's (October 2022): strides 4, 8, 16 and 32.
    V1 = "v1"
    #: The later one (January 2023), `MMFormer`: a dilated trunk, its maps made smaller for the
    #: segmenter.
    V2 = "v2"
    #: The later one, `MMFormer_svf`: the segmenter sees the trunk's maps as they are.
    V2SVF = "v2svf"


class _SegmenterHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder()
        self.predictor = MaskDecoder()


class MmformerNetwork(nn.Module):
    """All weights. Those of the later trunk lie under `backbone.`, each convolution folded."""

    def __init__(self, variant: Variant) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.variant = variant
        self.backbone = PaperBackbone() if variant is Variant.V1 else DilatedBackbone()
        self.sem_seg_head = _SegmenterHead()
        for level, channels in enumerate((2048, 1024, 512)):
            self.add_module(f"conv_{level}", nn.Conv2d(channels, WIDTH, 1, bias=False))
            self.add_module(f"crossat_{level}", Alignment())
        self.fc1 = nn.Linear(PROPOSALS, _HIDDEN)
        self.fc2 = nn.Linear(_HIDDEN, PROPOSALS)

    def matched(self, maps: Maps) -> tuple[Tensor, ...]:
        """Aligns the three coarse maps with themselves: float32 [batch, 256, h, w], res5 first."""
        return tuple(
            self.get_submodule(f"conv_{level}")(self_aligned(values))
            for level, values in enumerate(reversed(maps[1:]))
        )

    def segmented(self, maps: Maps) -> tuple[Tensor, ...]:
        """Projects the three coarse maps for the segmenter: float32 [batch, 256, h, w]."""
        seen = list(reversed(maps[1:]))
        if self.variant is Variant.V2:
            seen = [
                Resize(grid_of(values), target, align_corners=True)(values)
                for values, target in zip(seen, self.segmenter_grids(maps), strict=True)
            ]
        projections = self.sem_seg_head.pixel_decoder.input_proj
        return tuple(
            projection(values) for projection, values in zip(projections, seen, strict=True)
        )

    def segmenter_grids(self, maps: Maps) -> list[tuple[int, int]]:
        """Grids of the maps that the segmenter sees, coarsest first."""
        if self.variant is not Variant.V2:
            return [grid_of(values) for values in reversed(maps[1:])]
        rows, columns = grid_of(maps[1])
        return [(rows // 4, columns // 4), (rows // 2, columns // 2), (rows, columns)]

    def weigh(self, similarities: Tensor) -> Tensor:
        """Turns cosines [..., 100] into a weight for each proposal, any number, [..., 100]."""
        weights: Tensor = self.fc2(torch.relu(self.fc1(similarities)))
        return weights

    def alignment(self, level: int) -> Alignment:
        """The weights of a level's alignment."""
        module = self.get_submodule(f"crossat_{level}")
        assert isinstance(module, Alignment)
        return module


def grid_of(maps: Tensor) -> tuple[int, int]:
    """Rows and columns of maps [..., h, w]."""
    return maps.shape[-2], maps.shape[-1]
