# SPDX-License-Identifier: Apache-2.0
"""FewSeg's own default model, `compact`: a trunk, prototypes, and a learned reading of them.

It is a prototype segmentor that is built for a processor with few cores and for sharp masks:

* Every halving of the grid uses an even kernel (4x4 in the stem, 2x2 below), so cell (i, j) of a
  map of stride s is centred on pixel s * (i + 1/2) - 1/2. Feature grids and half-pixel bilinear
  resizes then agree exactly; a 3x3 kernel with padding one would shift every map by almost half a
  cell, and masks with it.
* A residual block is a depthwise convolution followed by two pointwise ones. No gates and no
  attention: after the batch norms are folded, the graph is convolutions, ReLU, additions and
  bilinear resizes.
* Most weights sit at stride 16, where 5x5 depthwise kernels see nearly the whole image. A top-down
  path brings that meaning to stride 8 (`semantic`) and a thin one mixes it with colour and texture
  at stride 4 (`fine`), because many pictures to segment (coins, stained tissue, galaxies) hold no
  everyday object at all. Both maps have unit length in every cell.
* The guidance of a shot is the masked average of both maps under each plane. Of a query, cosines
  to the prototypes give a first margin; what it finds most surely gives prototypes of the query's
  own (self-support); a small network, which sees comparisons and not classes, completes the figure.
* A query is read twice. On classes that the network was not trained on, the first reading finds the
  right place and too little of it. Its mask gives prototypes of what the class looks like in this
  picture, and the second reading goes by these and by the shots', in equal parts where the find is
  clear. Both readings take a timid finding for a little more than it is. Where nothing was found,
  nothing of this happens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.methods.blocks import IMAGE_MEAN, IMAGE_STD
from export.methods.prototypes import PrototypeGuide


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    active: bool = True,
    gain: float = 1.0,
) -> nn.Sequential:
    """Returns convolution, batch norm and, where `active`, ReLU; grids stay or halve exactly."""
    padding = (kernel - stride) // 2
    norm = nn.BatchNorm2d(outputs)
    nn.init.constant_(norm.weight, gain)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        norm,
    ]
    if active:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Depthwise convolution, then a pointwise pair of twice the width, added to the input."""

    def __init__(self, channels: int, kernel: int) -> None:
        """Builds a block of `channels` with an odd depthwise `kernel`."""
        super().__init__()
        self.spatial = _convolution(channels, channels, kernel, groups=channels, active=False)
        self.expand = _convolution(channels, 2 * channels)
        self.project = _convolution(2 * channels, channels, active=False, gain=0.3)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns maps of the same shape."""
        added: Tensor = self.project(self.expand(self.spatial(maps)))
        return maps + added


class TopDownFusion(nn.Module):
    """Brings a coarse map to twice its grid, adds the finer map there and mixes the two."""

    def __init__(self, coarse: int, fine: int, channels: int) -> None:
        """Joins maps of `coarse` and `fine` channels into `channels`."""
        super().__init__()
        self.coarse = _convolution(coarse, channels, active=False)
        self.fine = _convolution(fine, channels, active=False)
        self.mix = ResidualBlock(channels, kernel=3)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Returns the joined map on the grid of `fine`."""
        size = (fine.shape[-2], fine.shape[-1])
        raised = functional.interpolate(
            self.coarse(coarse), size=size, mode="bilinear", align_corners=False
        )
        joined: Tensor = self.mix(functional.relu(raised + self.fine(fine)))
        return joined


class CompactTrunk(nn.Module):
    """Light convolutional trunk: a normalised RGB image to a map of meaning and one of detail.

    The height and width of the image must be multiples of 16.

    Attributes:
        semantic_channels: Channels of the first map, of stride 8.
        fine_channels: Channels of the second, of stride 4.
    """

    semantic_channels: int = 160
    fine_channels: int = 32

    def __init__(self, depth: int = 8) -> None:
        """Builds the trunk with random weights; `depth` blocks at stride 16."""
        super().__init__()
        self.stem = _convolution(3, 32, 4, stride=2)
        self.fine = nn.Sequential(_convolution(32, 64, 2, stride=2), ResidualBlock(64, 3))
        self.middle = nn.Sequential(
            _convolution(64, 128, 2, stride=2), ResidualBlock(128, 5), ResidualBlock(128, 5)
        )
        self.coarse = nn.Sequential(
            _convolution(128, 256, 2, stride=2), *(ResidualBlock(256, 5) for _ in range(depth))
        )
        self.fuse_semantic = TopDownFusion(256, 128, self.semantic_channels)
        self.semantic_head = nn.Conv2d(self.semantic_channels, self.semantic_channels, 1)
        self.fuse_fine = TopDownFusion(self.semantic_channels, 64, self.fine_channels)
        self.fine_head = nn.Conv2d(self.fine_channels, self.fine_channels, 1)

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the bottom-up maps of strides 4, 8 and 16 (64, 128 and 256 channels)."""
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        return fine, middle, self.coarse(middle)

    def fuse(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both feature maps, before they are brought to unit length."""
        semantic = self.fuse_semantic(coarse, middle)
        detail = self.fine_head(self.fuse_fine(semantic, fine))
        return self.semantic_head(semantic), detail

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features.

        Args:
            images: Normalised RGB, float [batch, 3, height, width].

        Returns:
            `semantic`, float [batch, 160, height / 8, width / 8], and `fine`, float [batch, 32,
            height / 4, width / 4]; cells have unit length.
        """
        semantic, fine = self.fuse(*self.pyramid(images))
        return unit_length(semantic.float()), unit_length(fine.float())


def unit_length(maps: Tensor, dim: int = 1) -> Tensor:
    """Divides by the root of the sum of squares along `dim`, at least 1e-4; zero stays zero."""
    # The bound comes before the root, whose slope at zero is infinite.
    return maps / (maps * maps).sum(dim, keepdim=True).clamp(min=1e-8).sqrt()


class CompactFeatures(nn.Module):
    """The `features` graph: a photograph's bytes to both maps."""

    def __init__(self, trunk: CompactTrunk) -> None:
        """Wraps a trained trunk."""
        super().__init__()
        self.trunk = trunk

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features of RGB uint8 [batch, H, W, 3]; see `CompactTrunk.forward`."""
        maps: tuple[Tensor, Tensor] = self.trunk(
            normalise_views(image.permute(0, 3, 1, 2).float() / 255.0)
        )
        return maps


class CompactGuide(nn.Module):
    """Features and annotation planes of one shot to its prototypes."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Fixes the height and width of the planes."""
        super().__init__()
        self.semantic = PrototypeGuide(size, (size[0] // 8, size[1] // 8))
        self.fine = PrototypeGuide(size, (size[0] // 4, size[1] // 4))

    def forward(self, semantic: Tensor, fine: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Averages both maps under each plane.

        Args:
            semantic: float32 [batch, 160, h / 8, w / 8].
            fine: float32 [batch, 32, h / 4, w / 4].
            planes: float32 [batch, 1 + ways, h, w] in [0, 1]; plane 0 is background.

        Returns:
            `prototypes` float32 [batch, 1 + ways, 192] and `weights` float32 [batch, 1 + ways], as
            `PrototypeGuide` gives them.
        """
        meant, weights = self.semantic(semantic, planes)
        looks, _ = self.fine(fine, planes)
        return torch.cat([meant, looks], 2), weights


LEANING = 0.5
"""How far the second reading leaves the shots' prototypes for those of the query's first mask."""

FIRST_BOLDNESS = (3.5, 0.75)
SECOND_BOLDNESS = (3.0, 0.5)
"""See `emboldened`; chosen on classes that were left out of training (docs/models/compact.md)."""

LARGEST_GIFT = 2.5


class CompactDecode(nn.Module):
    """Query features and prototypes to logits; every way is read by itself against background.

    Attributes:
        scales: Factors of the three margins of cosines: semantic, fine, self-support.
    """

    RELATIONS = 8

    def __init__(self) -> None:
        """Builds the reading with random weights."""
        super().__init__()
        semantic, fine = CompactTrunk.semantic_channels, CompactTrunk.fine_channels
        self.scales = nn.Parameter(torch.tensor([16.0, 4.0, 4.0]))
        self.relations = nn.Parameter(torch.randn(2, self.RELATIONS, semantic) * 0.5)
        self.meaning = _convolution(semantic, 32)
        self.enter = _convolution(32 + 2 * self.RELATIONS + 7, 64)
        self.near = ResidualBlock(64, 5)
        self.shrink = _convolution(64, 96, 2, stride=2)
        self.far = nn.Sequential(ResidualBlock(96, 5), ResidualBlock(96, 5))
        self.widen = _convolution(96, 64, active=False)
        self.join = ResidualBlock(64, 3)
        self.narrow = _convolution(64, 24, active=False)
        self.detail = _convolution(fine, 24, active=False)
        self.measures = nn.Conv2d(3, 24, 1)
        self.edge = ResidualBlock(24, 3)
        self.correction = nn.Conv2d(24, 1, 1)
        nn.init.zeros_(self.correction.weight)
        assert self.correction.bias is not None
        nn.init.zeros_(self.correction.bias)

    def margins(self, semantic: Tensor, fine: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the margins of cosines alone and the corrected ones, [batch, ways, h / 4, w / 4].

        Args:
            semantic: float32 [batch, 160, h / 8, w / 8].
            fine: float32 [batch, 32, h / 4, w / 4].
            prototypes: float32 [batch, 1 + ways, 192], background first.
        """
        return self._margins(semantic, fine, prototypes[:, 1:], prototypes[:, :1])

    def _margins(
        self, semantic: Tensor, fine: Tensor, figures: Tensor, grounds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`margins` of `figures` [batch, ways, 192] against `grounds`, one each or one for all."""
        batch, ways = figures.shape[:2]
        rows, columns = semantic.shape[2], semantic.shape[3]
        cells = semantic.flatten(2)
        figure_meant, figure_looks = self._parts(figures, semantic.shape[1])
        ground_meant, ground_looks = self._parts(grounds, semantic.shape[1])
        near_figure, near_ground = figure_meant @ cells, ground_meant @ cells
        first = near_figure - near_ground
        fine_ground = ground_looks @ fine.flatten(2)
        details = (figure_looks @ fine.flatten(2) - fine_ground).reshape(
            batch, ways, *fine.shape[2:]
        )
        pooled = functional.avg_pool2d(details, 2).flatten(2)
        found = self.scales[0] * first + self.scales[1] * pooled
        own = self._own_prototypes(cells, found)
        near_own = own @ cells
        own_figure, own_ground = near_own[:, :ways], near_own[:, ways:]
        coarse = self.scales[0] * first + self.scales[2] * (own_figure - own_ground)
        base = _double(coarse.reshape(batch, ways, rows, columns)) + self.scales[1] * details
        compared = [near_figure, near_ground.expand(-1, ways, -1), own_figure, own_ground]
        measures = torch.stack([*compared, first, pooled, found / 8], 2)
        seen = self._relations(figure_meant, ground_meant, cells)
        meaning = self.meaning(semantic).flatten(2).unsqueeze(1).expand(-1, ways, -1, -1)
        stacked = torch.cat([meaning, seen, measures], 2).flatten(0, 1)
        figure = self.enter(stacked.reshape(batch * ways, -1, rows, columns))
        figure = self.near(figure)
        wide = self.widen(self.far(self.shrink(figure)))
        figure = self.join(functional.relu(figure + _double(wide)))
        detail = self.detail(fine).unsqueeze(1).expand(-1, ways, -1, -1, -1).flatten(0, 1)
        fine_background = fine_ground.expand(-1, ways, -1).reshape(details.shape)
        looked = torch.stack([base / 8, details, fine_background], 2).flatten(0, 1)
        joined = _double(self.narrow(figure)) + detail + self.measures(looked)
        correction = self.correction(self.edge(functional.relu(joined)))
        return base, base + correction.reshape(batch, ways, fine.shape[2], fine.shape[3])

    def _relations(self, figures: Tensor, grounds: Tensor, cells: Tensor) -> Tensor:
        """Products of cells and prototypes summed with learned weights, [b, ways, 16, cells]."""
        figure = figures.unsqueeze(2) * self.relations[0]
        ground = grounds.unsqueeze(2) * self.relations[1]
        weighed = torch.cat([figure, ground.expand(-1, figure.shape[1], -1, -1)], 2)
        products: Tensor = weighed.flatten(1, 2) @ cells
        return products.reshape(cells.shape[0], -1, 2 * self.RELATIONS, cells.shape[2])

    @staticmethod
    def _own_prototypes(cells: Tensor, found: Tensor) -> Tensor:
        """Prototypes of what the query shows most surely: of the ways, then of their grounds."""
        likely = found.sigmoid()
        figure = (likely - 0.6).clamp(min=0) + 1e-3 * likely
        ground = (0.4 - likely).clamp(min=0) + 1e-3 * (1 - likely)
        return unit_length(torch.cat([figure, ground], 1) @ cells.transpose(1, 2), 2)

    def answer(self, semantic: Tensor, fine: Tensor, prototypes: Tensor) -> Tensor:
        """Reads twice; returns margins [batch, ways, h / 4, w / 4]; inputs are those of `margins`.

        The network is trained to read once. A background that no shot shows is wholly the query's
        own, if it shows any.
        """
        first = self.margins(semantic, fine, prototypes)[1]
        # Nobody has shown the ways that pad a bucket.
        shown = (prototypes[:, 1:].abs().sum(2) > 0).float()[..., None, None]
        found = _found(first) * shown
        # A way that fills the picture leaves no background to learn from.
        trust = LEANING * torch.stack([_found(-first) * found, found], 2).flatten(3)
        figure = emboldened(first, *FIRST_BOLDNESS).sigmoid()
        own = self._looks_of(semantic, fine, figure)
        # Each way gets its own background, so that no way's reading depends on the others.
        known = torch.cat(self._parts(prototypes, semantic.shape[1]), 2)
        pairs = torch.stack([known[:, :1].expand_as(known[:, 1:]), known[:, 1:]], 2)
        leaning = (1 - trust) * pairs + trust * own
        second = self._margins(semantic, fine, leaning[:, :, 1], leaning[:, :, 0])[1]
        return emboldened(second, *SECOND_BOLDNESS)

    def _looks_of(self, semantic: Tensor, fine: Tensor, figure: Tensor) -> Tensor:
        """Prototypes, of unit length, of what a reading takes for a way and for its background.

        Args:
            semantic: See `margins`.
            fine: Likewise.
            figure: Probability of each way, [batch, ways, h / 4, w / 4].

        Returns:
            [batch, ways, 2, 192], background first.
        """
        likely = torch.stack([1 - figure, figure], 2)
        # Cells that it is sure of; all the others count next to nothing, for masks without any.
        sure = ((likely - 0.5).clamp(min=0) + 1e-4 * likely).flatten(1, 2)
        meant = functional.avg_pool2d(sure, 2).flatten(2) @ semantic.flatten(2).transpose(1, 2)
        looks = sure.flatten(2) @ fine.flatten(2).transpose(1, 2)
        own = torch.cat([unit_length(meant, 2), unit_length(looks, 2)], 2)
        return own.reshape(own.shape[0], figure.shape[1], 2, own.shape[2])

    @staticmethod
    def _parts(prototypes: Tensor, split: int) -> tuple[Tensor, Tensor]:
        """Both parts of prototypes, of each map, at unit length."""
        return unit_length(prototypes[..., :split], 2), unit_length(prototypes[..., split:], 2)

    def forward(self, semantic: Tensor, fine: Tensor, prototypes: Tensor) -> Tensor:
        """Scores every cell for background, whose score is zero, and ways.

        Returns:
            `logits` float32 [batch, 1 + ways, 1, h / 4, w / 4].
        """
        margins = self.answer(semantic, fine, prototypes)
        return torch.cat([torch.zeros_like(margins[:, :1]), margins], 1).unsqueeze(2)


def _surest(margins: Tensor) -> Tensor:
    """Mean margin of the surest hundredth of the cells, [batch, ways, 1, 1]."""
    cells = margins.flatten(2)
    top: Tensor = cells.topk(max(1, cells.shape[2] // 100), 2)[0]
    return top.mean(2)[..., None, None]


def _found(margins: Tensor) -> Tensor:
    """Whether anything of a way was found: from 0 to 1 as its surest cells go from 0 to 1.

    Of negated margins: whether anything of its background was.
    """
    return _surest(margins).clamp(0.0, 1.0)


def emboldened(margins: Tensor, sure: float, share: float) -> Tensor:
    """Raises the margins of a way that was found timidly.

    Args:
        margins: [batch, ways, h, w].
        sure: What the surest cells of a way reach that needs nothing.
        share: Of what they lack, that all its cells are given, at most `LARGEST_GIFT`; less where
            hardly anything was found (`_found`).
    """
    lacking = (share * (sure - _surest(margins))).clamp(0.0, LARGEST_GIFT)
    return margins + lacking * _found(margins)


def _double(maps: Tensor) -> Tensor:
    """Brings maps to twice their grid, bilinear, half-pixel."""
    return functional.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


class CompactModel(nn.Module):
    """Everything of `compact` that is learned."""

    def __init__(self) -> None:
        """Builds it with random weights."""
        super().__init__()
        self.trunk = CompactTrunk()
        self.decode = CompactDecode()

    @classmethod
    def from_file(cls, path: str | Path) -> CompactModel:
        """Returns a model in evaluation mode with the weights of a safetensors file."""
        from safetensors.torch import load_file

        model = cls()
        model.load_state_dict(load_file(path))
        return model.eval()


def normalise_views(views: Tensor) -> Tensor:
    """Turns RGB in [0, 1], [batch, 3, height, width], into the trunk's input."""
    mean = torch.tensor(IMAGE_MEAN, device=views.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=views.device).view(1, 3, 1, 1)
    return (views - mean) / std
