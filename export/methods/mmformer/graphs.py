# SPDX-License-Identifier: Apache-2.0
"""MM-Former as four graphs.

What depends on the image only is in `features` (both roles) and `query_features` (the segmenter).
The rest depends on query *and* support: of a support only cells can be kept, no prototype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from export.methods.blocks import ImagenetInput, tokens_of
from export.methods.mmformer.mask_decoder import MaskDecoding
from export.methods.mmformer.matching import Grid, Level, Sources, cosines
from export.methods.mmformer.network import LEVELS, MmformerNetwork, grid_of
from export.methods.mmformer.parts import Resize
from export.methods.mmformer.pixel_decoder import PixelDecoding


class AveragedVectors(StrEnum):
    """Of which vectors several shots come to a mean."""

    #: Of the object and of every proposal, as in the code.
    BOTH = "both"
    #: Of the object alone, as in the paper. The mean is compared with the proposals as each shot
    #: aligns them; the paper does not say how, and the mean of these cosines is this project's way.
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Grids:
    """Sizes of the maps.

    Attributes:
        size: Of the network's input.
        matching: Of the maps that are matched, coarsest first.
        segmenting: Of those that the segmenter sees.
        finest: Of the trunk's finest map, of proposals and scores.
    """

    size: Grid
    matching: tuple[Grid, ...]
    segmenting: tuple[Grid, ...]
    finest: Grid


def grids_of(network: MmformerNetwork, size: Grid) -> Grids:
    """Asks a network for the sizes of its maps at an input size [H, W]."""
    with torch.no_grad():
        maps = network.backbone(torch.zeros(1, 3, *size))
    matching = tuple(grid_of(values) for values in reversed(maps[1:]))
    return Grids(size, matching, tuple(network.segmenter_grids(maps)), grid_of(maps[0]))


class MmformerFeatures(nn.Module):
    """The `features` graph: a photograph to what is matched and what is segmented.

    The segmenter's projections are here, although supports do not need them: they are 4 % of the
    work, and what they leave is a quarter less to keep and to send.
    """

    def __init__(self, network: MmformerNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Computes features of RGB uint8 [batch, H, W, 3].

        Returns:
            `matching_0` to `matching_2` and `segmenting_0` to `segmenting_2`, each float32
            [batch, 256, h, w], coarsest first, and `finest`, float32 [batch, 256, H / 4, W / 4].
        """
        maps = self.network.backbone(self.normalise(image))
        return (*self.network.matched(maps), *self.network.segmented(maps), maps[0])


class MmformerQuery(nn.Module):
    """The `query_features` graph: the segmenter, once per image, whatever the tasks."""

    def __init__(self, network: MmformerNetwork, grids: Grids) -> None:
        super().__init__()
        head = network.sem_seg_head
        self.pixels = PixelDecoding(head.pixel_decoder, grids.segmenting, grids.finest)
        self.masks = MaskDecoding(head.predictor, grids.segmenting, grids.finest)
        self.grid = grids.finest

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Proposes masks.

        Args:
            maps: What `features` returns.

        Returns:
            `tokens_0` to `tokens_2`, float32 [batch, h * w, 256]: the maps to match, cell by cell;
            and `proposals`, float32 [batch, 100, H / 4, W / 4] in [0, 1].
        """
        logits = self.logits(maps[LEVELS : 2 * LEVELS], maps[-1])
        tokens = (tokens_of(values) for values in maps[:LEVELS])
        return (*tokens, torch.unflatten(torch.sigmoid(logits), 2, self.grid))

    def logits(self, segmenting: Sequence[Tensor], finest: Tensor) -> Tensor:
        """Computes the proposals' logits, float32 [batch, 100, cells]."""
        tokens = self.pixels.encode(segmenting)
        embedding = self.pixels.embed(tokens[-1], finest)
        logits: Tensor = self.masks(tokens, embedding)
        return logits


class MmformerGuide(nn.Module):
    """The `guide` graph: the cells of a support under its annotation.

    Tensors are kept in float16, which moves the score by less than what is allowed between two
    float32 computations.
    """

    def __init__(self, grids: Grids) -> None:
        super().__init__()
        size, matching = grids.size, grids.matching
        self.soften = nn.ModuleList(Resize(size, grid, align_corners=False) for grid in matching)
        self.weigh = nn.ModuleList(Resize(size, grid, align_corners=True) for grid in matching)
        self.sources = nn.ModuleList(Sources(grid) for grid in matching)
        for level, (rows, columns) in enumerate(matching):
            places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
            self.register_buffer(f"places_{level}", places.float())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Masks cells.

        Args:
            inputs: What `features` returns, and `planes` float32 [batch, 1 + ways, H, W] of 0 and
                1; background is not used.

        Returns:
            Of each level, in float16: `cells_i` [batch, ways, N, 260] (`CELL_NUMBERS`), those that
            are averaged, with N as the busiest way needs, 1 at least;
            `sources_i` [batch, ways, M, 256], the small version of the masked map; `masks_i`
            [batch, ways, h, w], what it was masked with. And `shown`, float32 [batch, ways]: 1 for
            a way that the shot shows, else 0.
        """
        masks = inputs[-1][:, 1:]
        cells, sources, softened = [], [], []
        for level, maps in enumerate(inputs[:LEVELS]):
            soft = self.soften[level](masks)
            weights = self.weigh[level](masks)
            masked = maps.unsqueeze(1) * soft.unsqueeze(2)
            places = self.get_buffer(f"places_{level}").expand(*masks.shape[:2], -1, -1)
            shares = [values.flatten(2).unsqueeze(3) for values in (soft, weights)]
            whole = torch.cat([tokens_of(masked), *shares, places], dim=3)
            cells.append(_stored(whole, weights.flatten(2) > 0).half())
            sources.append(self.sources[level](masked).half())
            softened.append(soft.half())
        shown = (masks.amax(dim=(2, 3)) > 0).float()
        return (*cells, *sources, *softened, shown)


class MmformerDecode(nn.Module):
    """The `decode` graph: alignment with every shot of every way, comparison, score."""

    def __init__(
        self, network: MmformerNetwork, grids: Grids, merge: AveragedVectors = AveragedVectors.BOTH
    ) -> None:
        """Takes the weights, the sizes of the maps, and what several shots come to."""
        super().__init__()
        self.network = network
        self.merge = merge
        levels = (
            Level(network.alignment(level), grid, grids.finest)
            for level, grid in enumerate(grids.matching)
        )
        self.levels = nn.ModuleList(levels)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Segments.

        Args:
            inputs: What `query_features` returns; then what `guide` returns, each stacked over
                shots, [batch, shots, ways, ...]; then `validity` float32 [batch, shots], 1 for
                real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, 1, H / 4, W / 4]: the score of foreground minus that of
            background, which is one minus it. Neither is bounded.
        """
        proposals = inputs[LEVELS]
        weights = self.network.weigh(self.similarities(*inputs))
        # Resizing is linear: the sum of proposals is resized afterwards, instead of each.
        scores = torch.unflatten(weights @ proposals.flatten(2), 2, grid_of(proposals))
        return 2.0 * scores.unsqueeze(2) - 1.0

    def similarities(self, *inputs: Tensor) -> Tensor:
        """Compares every proposal with every way: cosines, float32 [batch, ways, 100]."""
        shown = inputs[-2] * inputs[-1].unsqueeze(2)
        objects, proposals = [
            torch.unflatten(torch.cat(vectors, dim=-1), 1, shown.shape[1:])
            for vectors in zip(*self._vectors(*inputs), strict=True)
        ]
        objects = _mean_over_shots(objects, shown)
        if self.merge is AveragedVectors.OBJECT:
            return _mean_over_shots(cosines(objects.unsqueeze(1), proposals), shown)
        return cosines(objects, _mean_over_shots(proposals, shown))

    def _vectors(self, *inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the vectors of objects and of proposals on each level, shots times ways apart."""
        tokens, (proposals, *rest) = inputs[:LEVELS], inputs[LEVELS:]
        for number, level in enumerate(self.levels):
            assert isinstance(level, Level)
            cells, sources, masks = (
                values.float().flatten(1, 2) for values in rest[number : 3 * LEVELS : LEVELS]
            )
            objects = level.object_vectors(tokens[number], cells)
            proposed = level.proposal_vectors(tokens[number], proposals, sources, masks)
            yield objects, proposed


def _stored(cells: Tensor, inside: Tensor) -> Tensor:
    """Puts the cells [batch, K, cells, C] that are inside first, and cuts what none needs."""
    most = inside.sum(dim=2).amax().clamp(min=1)
    places = torch.arange(inside.shape[2])
    # Distinct numbers, so that every runtime sorts alike: those inside first, each part in order.
    rank = inside.float() * inside.shape[2] - places
    # A tensor as the end of a slice is what a recorded run keeps.
    order = rank.argsort(dim=2, descending=True)[:, :, :most]
    chosen = torch.gather(cells, 2, order.unsqueeze(3).expand(-1, -1, -1, cells.shape[3]))
    return chosen * torch.gather(inside, 2, order).unsqueeze(3)


def _mean_over_shots(vectors: Tensor, shown: Tensor) -> Tensor:
    """Averages [batch, shots, ways, ...] over the shots that show a way; zero if none does."""
    weights = shown.reshape(*shown.shape, *([1] * (vectors.dim() - shown.dim())))
    return (vectors * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
