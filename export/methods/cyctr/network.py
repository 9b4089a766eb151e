# SPDX-License-Identifier: Apache-2.0
"""The weights of CyCTR, under the keys of its checkpoints (without their leading `module.`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import freeze_norms, residual_stage
from export.methods.deformable import DeformableAttention
from export.methods.enrichment import CHANNELS, classifier, merging, refining
from export.methods.trunks import BLOCKS, Backbone
from export.methods.trunks import CHANNELS as TRUNK_CHANNELS

ENCODERS = 2

POINTS = 9
"""That each head of the self-attention reads."""

_HIDDEN = 3 * CHANNELS


class DeepStemBody(nn.Module):
    """A ResNet with a stem of three convolutions; stages 3 and 4 keep the grid of stage 2.

    The first block of a dilated stage still has the dilation of the stage before it.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Builds the trunk with random weights."""
        super().__init__()
        blocks = BLOCKS[backbone]
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(128)
        self.layer1 = residual_stage(128, 64, blocks[0])
        self.layer2 = residual_stage(256, 128, blocks[1], stride=2)
        self.layer3 = residual_stage(512, 256, blocks[2], dilation=2, first_dilation=1)
        self.layer4 = residual_stage(1024, 512, blocks[3], dilation=4, first_dilation=2)
        freeze_norms(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes stages 2 to 4, float32 [batch, C, f, f], of normalised [batch, 3, S, S]."""
        maps = torch.relu(self.bn1(self.conv1(images)))
        maps = torch.relu(self.bn2(self.conv2(maps)))
        maps = torch.relu(self.bn3(self.conv3(maps)))
        maps = nn.functional.max_pool2d(maps, 3, stride=2, padding=1)
        second = self.layer2(self.layer1(maps))
        third = self.layer3(second)
        return second, third, self.layer4(third)


class CrossAttention(nn.Module):
    """Projections of the attention of query cells to support tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q_fc = _linear(CHANNELS, CHANNELS)
        self.k_fc = _linear(CHANNELS, CHANNELS)
        self.v_fc = _linear(CHANNELS, CHANNELS)
        self.proj = _linear(CHANNELS, CHANNELS)


class FeedForward(nn.Module):
    """Two layers for each token by itself, its input added."""

    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Sequential(_linear(CHANNELS, _HIDDEN), nn.ReLU())
        self.layers = nn.Sequential(hidden, _linear(_HIDDEN, CHANNELS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Computes float32 [..., 256] of the same."""
        result: Tensor = tokens + self.layers(tokens)
        return result


class Transformer(nn.Module):
    """Weights of both encoders; `encoders.Encoders` runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(1, CHANNELS))
        self.qry_self_layers = nn.ModuleList(
            DeformableAttention(CHANNELS, levels=1, points=POINTS, bias=False)
            for _ in range(ENCODERS)
        )
        self.cross_layers = nn.ModuleList(CrossAttention() for _ in range(ENCODERS))
        self.ffns = nn.ModuleList(FeedForward() for _ in range(2 * ENCODERS))
        self.layer_norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(4 * ENCODERS))


class _Backbone(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.body = DeepStemBody(backbone)


class CyctrNetwork(nn.Module):
    """The network of 256 channels, which the published configs train."""

    def __init__(self, backbone: Backbone) -> None:
        """Builds the network of a ResNet-50 or ResNet-101 with random weights."""
        super().__init__()
        self.kind = backbone
        self.backbone = _Backbone(backbone)
        self.channels = TRUNK_CHANNELS[backbone]
        middle = self.channels.middle
        self.adjust_feature_supp = merging(middle)
        self.adjust_feature_qry = merging(middle)
        self.qry_merge_feat = merging(2 * CHANNELS + 1)
        self.supp_merge_feat = merging(2 * CHANNELS)
        self.transformer = Transformer()
        self.merge_multi_lvl_reduce = merging(CHANNELS)
        self.merge_multi_lvl_sum = refining()
        self.cls = classifier()
        # Only training uses these; checkpoints hold them, under a misspelt name too.
        self.addtional_proj = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
        )
        self.pred_supp_qry_proj = merging(CHANNELS)
        self.supp_init_merge = merging(2 * CHANNELS)
        self.supp_beta_conv = refining()
        self.supp_cls = classifier()

    def classified(self, maps: Tensor) -> Tensor:
        """Foreground minus background, float32 [batch, f, f], of maps [batch, 256, f, f]."""
        maps = self.merge_multi_lvl_reduce(maps)
        logits = self.cls(self.merge_multi_lvl_sum(maps) + maps)
        margins: Tensor = logits[:, 1] - logits[:, 0]
        return margins


def grid_side(size: int) -> int:
    """Side f of the maps of an input of `size` pixels."""
    return (size - 1) // 8 + 1


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)
