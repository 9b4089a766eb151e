# SPDX-License-Identifier: Apache-2.0
"""Guided networks (Rakelly et al. 2018) with late fusion, as their code "revolver" has them.

Support and query go through one VGG-16 (phi). Annotations are shrunk to phi's grid by a fixed
bilinear kernel and turn its cells into one vector z per annotation; a head of two 1x1 convolutions
scores every cell of the query beside the tiled z.

The head's first layer is linear, and splits by what goes in: fc7([q; z]) = Wq q + b + Wz z. The
first part, Wq q + b, belongs to the query image alone (`query_features`), and Wz z to the annotated
shot alone (`guide`); since it is linear, the mean of Wz z over shots is Wz of the mean of z. What
is left for `decode` is one addition, ReLU and product per cell and way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from export.methods.blocks import planar, triangle

STRIDE = 32
"""Of phi's grid, which has ceil(side / 32) - 1 cells."""

IMAGE_MEAN = (0.48109378 * 255, 0.45752457 * 255, 0.40787054 * 255)
"""Mean of RGB bytes that the network was trained with."""

AREA_EPSILON = 1e-6
"""Added to the sum of a shrunk annotation, so that an empty one gives the zero vector."""

BORDER = 81
"""Padding of the first convolution, by which fc6's valid 7x7 window is centred."""

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages of VGG-16."""

_CONVOLUTIONS = (2, 2, 3, 3, 3)


class ShotMean(StrEnum):
    """Over which shots the vectors of an unshared head are averaged."""

    ALL = "all"
    ANNOTATING = "annotating"


@dataclass(frozen=True, slots=True)
class GuidedModel:
    """One of the published models.

    Attributes:
        name: As the official command line calls it.
        channels: Of phi: 4096, or 256 for the "lite" models.
        shared: Whether one head scores every annotation on its own, so that classes compete; else
            it scores an object against its background.
        buffers: Whether the state dict carries `z` and `num_z`.
    """

    name: str
    channels: int
    shared: bool
    buffers: bool

    @property
    def hidden(self) -> int:
        """Channels inside the head: of the query and of each annotation that goes in with it."""
        return (2 if self.shared else 3) * self.channels


class Encoder(nn.Sequential):
    """Phi: VGG-16 with pools that round up, and fc6 as a 7x7 convolution."""

    def __init__(self, channels: int, widths: Sequence[int] = WIDTHS, inputs: int = 3) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for stage, (width, convolutions) in enumerate(zip(widths, _CONVOLUTIONS, strict=True), 1):
            for number in range(1, convolutions + 1):
                padding = BORDER if stage == number == 1 else 1
                layers[f"conv{stage}_{number}"] = nn.Conv2d(inputs, width, 3, padding=padding)
                layers[f"relu{stage}_{number}"] = nn.ReLU(inplace=True)
                inputs = width
            layers[f"pool{stage}"] = nn.MaxPool2d(2, 2, ceil_mode=True)
        layers["fc6"] = nn.Conv2d(inputs, channels, 7)
        layers["relu6"] = nn.ReLU(inplace=True)
        super().__init__(layers)


class Head(nn.Sequential):
    """Two 1x1 convolutions over the query's features and tiled guidance."""

    fc7: nn.Conv2d
    score: nn.Conv2d

    def __init__(self, inputs: int, hidden: int, scores: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["fc7"] = nn.Conv2d(inputs, hidden, 1)
        layers["relu7"] = nn.ReLU(inplace=True)
        layers["score"] = nn.Conv2d(hidden, scores, 1)
        super().__init__(layers)

    def parts(self, channels: int) -> tuple[Tensor, ...]:
        """Splits the first layer's weights by what goes in, `channels` each."""
        weight = self.fc7.weight[:, :, 0, 0]
        return torch.split(weight, channels, dim=1)


class GuidedNetwork(nn.Module):
    """The network with the keys of the official checkpoints.

    Attributes:
        model: Which of the published models.
    """

    def __init__(self, model: GuidedModel, widths: Sequence[int] = WIDTHS) -> None:
        """Builds the network without meaningful weights.

        Args:
            model: Which of the published models.
            widths: Channels of the five stages; the published models have VGG-16's.
        """
        super().__init__()
        self.model = model
        channels, hidden = model.channels, model.hidden
        scores = 1 if model.shared else 2
        if model.buffers:
            self.register_buffer("z", torch.zeros(2, channels))
            self.register_buffer("num_z", torch.zeros(2, 1))
        self.anno_enc = nn.Conv2d(1, 1, 2 * STRIDE, STRIDE, bias=False)
        self.encoder = Encoder(channels, widths)
        self.head = Head(hidden, hidden, scores)
        self.decoder = nn.ConvTranspose2d(scores, scores, 2 * STRIDE, STRIDE, bias=False)

    @classmethod
    def load(
        cls, model: GuidedModel, tensors: Mapping[str, Tensor], widths: Sequence[int] = WIDTHS
    ) -> GuidedNetwork:
        """Builds a network that holds these tensors themselves, in evaluation mode."""
        network = cls.blank(model, widths)
        network.load_state_dict(dict(tensors), assign=True)
        return network.eval()

    @classmethod
    def blank(cls, model: GuidedModel, widths: Sequence[int] = WIDTHS) -> GuidedNetwork:
        """Builds a network with names and shapes only, at no cost."""
        with torch.device("meta"):
            return cls(model, widths)


def annotation_kernel() -> Tensor:
    """What `anno_enc.weight` holds in official checkpoints, float32 [1, 1, 64, 64], sum 1."""
    taps = triangle(torch.arange(2 * STRIDE), STRIDE) / STRIDE
    return torch.outer(taps, taps)[None, None]


def upsampling_kernel(scores: int) -> Tensor:
    """What `decoder.weight` holds in official checkpoints, float32 [scores, scores, 64, 64]."""
    taps = triangle(torch.arange(2 * STRIDE), STRIDE)
    return torch.eye(scores)[:, :, None, None] * torch.outer(taps, taps)


class GuidedInput(nn.Module):
    """From an image tensor to what all these networks take."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN[::-1]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Turns RGB uint8 [batch, H, W, 3] into BGR around zero, float32 [batch, 3, H, W]."""
        return planar(image.flip(-1)) - self.mean


class GuidedFeatures(nn.Module):
    """The `features` graph: a photograph of any size to phi."""

    def __init__(self, network: GuidedNetwork) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.normalise = GuidedInput()

    def forward(self, image: Tensor) -> Tensor:
        """Computes phi.

        Args:
            image: RGB uint8 [batch, H, W, 3]; both sides 33 or more.

        Returns:
            float32 [batch, D, ceil(H / 32) - 1, ceil(W / 32) - 1], none negative.
        """
        features: Tensor = self.encoder(self.normalise(image))
        return features


class GuidedQuery(nn.Module):
    """The `query_features` graph: the query's part of the head's first layer, Wq q + b."""

    def __init__(self, network: GuidedNetwork) -> None:
        super().__init__()
        query, *_ = network.head.parts(network.model.channels)
        self.weight = nn.Parameter(query[:, :, None, None])
        self.bias = network.head.fc7.bias

    def forward(self, features: Tensor) -> Tensor:
        """Projects phi, float32 [batch, D, h, w], to float32 [batch, N, h, w]."""
        return nn.functional.conv2d(features, self.weight, self.bias)


class AnnotatedCells(nn.Module):
    """From annotation planes to z, the weighted mean of phi under each (sections 2 and 3)."""

    def forward(self, features: Tensor, planes: Tensor) -> Tensor:
        """Averages phi under each plane.

        Args:
            features: float32 [batch, D, h, w].
            planes: float32 [batch, K, H, W] in [0, 1].

        Returns:
            z, float32 [batch, K, D]; zero where a plane is empty.
        """
        return weighted_cells(features, self.shrink(features, planes))

    @staticmethod
    def shrink(features: Tensor, planes: Tensor) -> Tensor:
        """Shrinks planes to the grid of the features by `anno_enc`: float32 [batch, K, h, w].

        The kernel is an outer product, so it is applied to columns and to rows, one small matrix
        each, instead of 4096 products per cell.
        """
        rows = _shrinking_matrix(features.shape[2], planes.shape[2])
        columns = _shrinking_matrix(features.shape[3], planes.shape[3])
        return rows @ (planes @ columns.T)


def weighted_cells(features: Tensor, cells: Tensor) -> Tensor:
    """Weighted means of cells.

    Args:
        features: float32 [batch, D, h, w].
        cells: Weights, float32 [batch, K, h, w], none negative.

    Returns:
        float32 [batch, K, D].
    """
    weights = cells.flatten(2)
    weights = weights / (weights.sum(dim=2, keepdim=True) + AREA_EPSILON)
    return weights @ features.flatten(2).transpose(1, 2)


def rest_of(planes: Tensor) -> Tensor:
    """What is background to each way where it is a task of its own: plane 0 and the other ways.

    Args:
        planes: float32 [batch, 1 + ways, H, W]; plane 0 is background.

    Returns:
        float32 [batch, ways, H, W].
    """
    ways = planes[:, 1:]
    numbers = torch.arange(ways.shape[1])
    # A product instead of "all but this one": no difference of large sums leaves a remainder.
    others = (numbers[:, None] != numbers[None]).float()
    return planes[:, :1] + (others @ ways.flatten(2)).reshape(ways.shape)


def shots_of_ways(planes: Tensor) -> Tensor:
    """Whether a shot counts for each way: float32 [batch, ways].

    It does not where it shows other ways only, and is no shot of this one's task. A shot that shows
    none counts for all, as the official code counts it.
    """
    shown = (planes[:, 1:].amax(dim=(2, 3)) > 0).float()
    return torch.maximum(shown, 1.0 - shown.amax(dim=1, keepdim=True))


class SharedGuide(nn.Module):
    """The `guide` graph where every annotation is scored on its own (`cofeat-late*`)."""

    def __init__(self, network: GuidedNetwork) -> None:
        super().__init__()
        self.annotated = AnnotatedCells()
        _, guidance = network.head.parts(network.model.channels)
        self.projection = nn.Parameter(guidance)

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the guidance of one shot.

        Args:
            features: float32 [batch, D, h, w].
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; plane 0 is background.

        Returns:
            `guidance` Wz z, float32 [batch, 1 + ways, N], and `weights` float32 [batch, 1 + ways]:
            1 where the plane has an annotation. The running mean of the official code is over
            those shots.
        """
        guidance = self.annotated(features, planes) @ self.projection.T
        return guidance, (planes.sum(dim=(2, 3)) > 0).float()


class UnsharedGuide(nn.Module):
    """The `guide` graph where an object is scored against its background (`...-unshared`).

    Each way is a task of its own: its background is the background's plane and the other ways.
    """

    def __init__(self, network: GuidedNetwork) -> None:
        super().__init__()
        self.annotated = AnnotatedCells()
        # The head takes [query, foreground, background], though its code names them otherwise.
        _, foreground, background = network.head.parts(network.model.channels)
        self.foreground = nn.Parameter(foreground)
        self.background = nn.Parameter(background)

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the guidance of one shot.

        Args:
            features: float32 [batch, D, h, w].
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; plane 0 is background.

        Returns:
            `guidance` float32 [batch, ways, N], and `weights` float32 [batch, ways]: 0 where the
            shot shows other ways only, and is no shot of this one's task. All shots of a task
            count in the mean of the official code, those that lack an annotation too.
        """
        objects, rest = self.vectors(features, planes)
        guidance = objects @ self.foreground.T + rest @ self.background.T
        return guidance, shots_of_ways(planes)

    def vectors(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Computes z of each way and z of its background, float32 [batch, ways, D] each."""
        cells = self.annotated.shrink(features, planes)
        return weighted_cells(features, cells[:, 1:]), weighted_cells(features, rest_of(cells))


class AnnotatingGuide(UnsharedGuide):
    """`UnsharedGuide` with a mean of its own for the object and for its background.

    Each runs over the shots that annotate it, as the shared models' means do: a shot that lacks an
    annotation does not shrink the vector.
    """

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Computes the guidance of one shot.

        Args:
            features: float32 [batch, D, h, w].
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; plane 0 is background.

        Returns:
            `objects` float32 [batch, ways, N] and `object_weights` float32 [batch, ways]: 1 where
            the shot shows the way, else 0; `backgrounds` and `background_weights` likewise: 1
            where the rest is annotated and the shot is one of the way's task.
        """
        objects, rest = self.vectors(features, planes)
        marked = (planes.amax(dim=(2, 3)) > 0).float()
        shown = marked[:, 1:]
        others = (marked.sum(dim=1, keepdim=True) - shown > 0).float() * shots_of_ways(planes)
        return objects @ self.foreground.T, shown, rest @ self.background.T, others


class GuidedDecode(nn.Module):
    """The `decode` graph: what is left of the head once query and guidance are projected."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        weight, bias = head.score.weight[:, :, 0, 0], head.score.bias
        assert bias is not None
        if len(weight) == 2:
            # Only the margin decides, and upsampling is linear.
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, projected: Tensor, guidance: Tensor) -> Tensor:
        """Scores every cell.

        Args:
            projected: Of the query, float32 [batch, N, h, w].
            guidance: Of the task, float32 [batch, P, N].

        Returns:
            `logits` float32 [batch, P, 1, h, w]: a score per plane, or a margin per way.
        """
        fused = torch.relu(projected.flatten(2)[:, None] + guidance.unsqueeze(3))
        scores = self.weight @ fused + self.bias
        return scores.reshape(*scores.shape[:3], *projected.shape[2:])


class AnnotatingDecode(GuidedDecode):
    """`GuidedDecode` for what `AnnotatingGuide` makes: object and background come apart."""

    def forward(self, projected: Tensor, objects: Tensor, backgrounds: Tensor) -> Tensor:  # type: ignore[override]
        """Scores every cell; `objects` and `backgrounds` are float32 [batch, ways, N]."""
        return super().forward(projected, objects + backgrounds)


def _shrinking_matrix(cells: int, pixels: int) -> Tensor:
    """One axis of `anno_enc` as a matrix, float32 [cells, pixels]."""
    offsets = torch.arange(pixels)[None] - STRIDE * torch.arange(cells)[:, None]
    return triangle(offsets, STRIDE) / STRIDE
