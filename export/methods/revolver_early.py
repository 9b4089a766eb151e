# SPDX-License-Identifier: Apache-2.0
"""Guided networks with early fusion (`cofeat-early`): the baseline that sees image and annotation.

The support's encoder takes the annotation as two more channels of the image, so that nothing of a
support can be computed before it is annotated: `features` is the normalised image itself, and a new
annotation costs an encoder run. What the query costs does not change: its encoder knows no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from export.methods.revolver import (
    STRIDE,
    WIDTHS,
    Encoder,
    GuidedInput,
    Head,
    rest_of,
    shots_of_ways,
)

CHANNELS = 256
"""Of both encoders."""

DILATION = 11
"""Side of the square that a labelled pixel grows to."""


class EarlyNetwork(nn.Module):
    """The network with the keys of the official checkpoints."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        """Builds the network without meaningful weights.

        Args:
            widths: Channels of the five stages; the published model has VGG-16's.
        """
        super().__init__()
        self.supp_encoder = Encoder(CHANNELS, widths, inputs=5)
        self.qry_encoder = Encoder(CHANNELS, widths)
        self.head = Head(2 * CHANNELS, CHANNELS, 2)
        self.decoder = nn.ConvTranspose2d(2, 2, 2 * STRIDE, STRIDE, bias=False)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> EarlyNetwork:
        """Builds a network that holds these tensors themselves, in evaluation mode."""
        network = cls.blank()
        network.load_state_dict(dict(tensors), assign=True)
        return network.eval()

    @classmethod
    def blank(cls) -> EarlyNetwork:
        """Builds a network with names and shapes only, at no cost."""
        with torch.device("meta"):
            return cls()


class EarlyFeatures(nn.Module):
    """The `features` graph: what both encoders start from."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = GuidedInput()

    def forward(self, image: Tensor) -> Tensor:
        """Turns RGB uint8 [batch, H, W, 3] into BGR around zero, float32 [batch, 3, H, W]."""
        normalised: Tensor = self.normalise(image)
        return normalised


class EarlyQuery(nn.Module):
    """The `query_features` graph: the query's encoder and its part of the head's first layer."""

    def __init__(self, network: EarlyNetwork) -> None:
        super().__init__()
        self.encoder = network.qry_encoder
        # The head takes [support, query].
        _, query = network.head.parts(CHANNELS)
        self.weight = nn.Parameter(query[:, :, None, None])
        self.bias = network.head.fc7.bias

    def forward(self, features: Tensor) -> Tensor:
        """Encodes an image [batch, 3, H, W] to float32 [batch, 256, h, w]."""
        return nn.functional.conv2d(self.encoder(features), self.weight, self.bias)


class EarlyGuide(nn.Module):
    """The `guide` graph: the support's encoder on the annotated image, averaged."""

    def __init__(self, network: EarlyNetwork) -> None:
        super().__init__()
        self.encoder = network.supp_encoder
        support, _ = network.head.parts(CHANNELS)
        self.projection = nn.Parameter(support)
        self.dilate = nn.MaxPool2d(DILATION, stride=1, padding=DILATION // 2)

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the guidance of one shot.

        Args:
            features: The normalised image, float32 [batch, 3, H, W].
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; plane 0 is background.

        Returns:
            `guidance` float32 [batch, ways, 256], and `weights` float32 [batch, ways]: positions of
            the encoder's map, as the official mean is over those of all supports together; 0 where
            the shot shows other ways only.
        """
        encoded = self.encoder(self.annotated(features, planes).flatten(0, 1))
        means = encoded.mean(dim=(2, 3)).reshape(len(features), -1, CHANNELS)
        positions = torch.ones_like(encoded[0, 0]).sum()
        return means @ self.projection.T, shots_of_ways(planes) * positions

    def annotated(self, features: Tensor, planes: Tensor) -> Tensor:
        """Stacks image and annotation of each way: float32 [batch, ways, 5, H, W].

        The annotation's channels, background first, are -128, and 128 around labelled pixels.
        """
        channels = torch.stack([rest_of(planes), planes[:, 1:]], dim=2)
        grown = self.dilate(channels.flatten(0, 1)).reshape(channels.shape) * 256.0 - 128.0
        images = features[:, None].expand(-1, channels.shape[1], -1, -1, -1)
        return torch.cat([images, grown], dim=2)
