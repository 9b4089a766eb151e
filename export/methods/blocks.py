# SPDX-License-Identifier: Apache-2.0
"""Parts that several published networks share, under the layer numbers of their checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

IMAGE_MEAN = (0.485, 0.456, 0.406)
"""Mean of RGB values in [0, 1] that trunks of ImageNet are fed with."""

IMAGE_STD = (0.229, 0.224, 0.225)
"""Standard deviation of RGB values in [0, 1] that trunks of ImageNet are fed with."""

AREA_FLOOR = 1e-12
"""Lower bound of an area that is divided by, far below that of one pixel."""


def convolution_stage(
    inputs: int, outputs: int, convolutions: int, dilation: int = 1
) -> list[nn.Module]:
    """Makes a stage of VGG: 3x3 convolutions at even positions, ReLUs at odd ones.

    Args:
        inputs: Channels that go in.
        outputs: Channels that every convolution makes.
        convolutions: How many.
        dilation: Of every convolution; its padding keeps the grid.

    Returns:
        The layers in order.
    """
    layers: list[nn.Module] = []
    for number in range(convolutions):
        channels = inputs if number == 0 else outputs
        layers.append(nn.Conv2d(channels, outputs, 3, padding=dilation, dilation=dilation))
        layers.append(nn.ReLU(inplace=True))
    return layers


class Bottleneck(nn.Module):
    """A residual block of ResNet-50 and deeper, under torchvision's names."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        stride_first: bool = False,
        downsample: bool = False,
    ) -> None:
        """Builds a block.

        Args:
            inputs: Channels that go in.
            planes: Channels inside; four times as many come out.
            stride: Of the block.
            dilation: Of the 3x3 convolution; its padding keeps the grid.
            stride_first: Whether the first 1x1 convolution takes the stride, as in the first
                ResNets, instead of the 3x3, as in torchvision.
            downsample: Whether the shortcut has a convolution.
        """
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, stride=second, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if downsample:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """Computes float32 [batch, 4 planes, h, w] of [batch, inputs, H, W]."""
        result: Tensor = self.relu(self.summed(maps))
        return result

    def summed(self, maps: Tensor) -> Tensor:
        """Computes the sum of both branches, which `forward` rectifies."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        maps = self.relu(self.bn1(self.conv1(maps)))
        maps = self.relu(self.bn2(self.conv2(maps)))
        result: Tensor = self.bn3(self.conv3(maps)) + shortcut
        return result


def residual_stage(
    inputs: int,
    planes: int,
    blocks: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    first_dilation: int | None = None,
    stride_first: bool = False,
) -> nn.Sequential:
    """Makes a stage of ResNet; only its first block has a stride and a convolved shortcut.

    `first_dilation` is that of the first block, where it differs from the others'.
    """
    outputs = planes * Bottleneck.expansion
    first = Bottleneck(
        inputs,
        planes,
        stride=stride,
        dilation=dilation if first_dilation is None else first_dilation,
        stride_first=stride_first,
        downsample=True,
    )
    rest = [Bottleneck(outputs, planes, dilation=dilation) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class CaffeResnet50(nn.Module):
    """ResNet-50 as CANet and its relatives have it.

    The first 1x1 convolution of a block takes its stride, the pool rounds up, the third stage is
    dilated, and there is no fourth.
    """

    def __init__(self) -> None:
        """Builds the trunk with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.layer1 = residual_stage(64, 64, 3)
        self.layer2 = residual_stage(256, 128, 4, stride=2, stride_first=True)
        self.layer3 = residual_stage(512, 256, 6, dilation=2)

    def middle(self, images: Tensor) -> Tensor:
        """Second and third stage, float32 [batch, 512 + 1024, h, w], of images [batch, 3, H, W]."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        second = self.layer2(self.layer1(maps))
        return torch.cat([second, self.layer3(second)], dim=1)


class FrozenNorm(nn.Module):
    """Batch normalisation that was never trained, as detectors keep it."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Normalises float32 [batch, channels, h, w]."""
        return nn.functional.batch_norm(
            maps, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5
        )


def freeze_norms(network: nn.Module) -> None:
    """Puts a `FrozenNorm` in the place of each batch normalisation inside a network."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, FrozenNorm(child.num_features))
        else:
            freeze_norms(child)


def planar(image: Tensor) -> Tensor:
    """Turns an image tensor [batch, H, W, 3] into float32 [batch, 3, H, W]."""
    return image.permute(0, 3, 1, 2).float()


class ImagenetInput(nn.Module):
    """From an image tensor to what trunks of ImageNet take.

    Attributes:
        bgr: Whether the trunk sees blue first. Mean and deviation stay where they are, as in code
            that reads images with OpenCV and normalises them with torchvision's numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Turns RGB uint8 [batch, H, W, 3] into float32 [batch, 3, H, W]."""
        return (planar(image.flip(-1) if self.bgr else image) / 255.0 - self.mean) / self.std


def tokens_of(maps: Tensor) -> Tensor:
    """Turns maps [..., C, h, w] into tokens [..., h * w, C]."""
    return maps.flatten(-2).transpose(-1, -2)


def maps_of(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turns tokens [..., h * w, C] into maps [..., C, h, w]."""
    return torch.unflatten(tokens.transpose(-1, -2), -1, grid)


def pooled_under(features: Tensor, planes: Tensor) -> Tensor:
    """Sums features that were resized to the planes, half-pixel, under each plane.

    Resizing U is linear, so sum(U(F) * m) = sum(F * U'(m)): the transposed resize is applied to the
    planes, as one small matrix per axis, and no map of C x H x W is ever made.

    Args:
        features: float32 [batch, C, h, w].
        planes: float32 [batch, K, H, W].

    Returns:
        float32 [batch, K, C].
    """
    rows = half_pixel_matrix(features.shape[2], planes.shape[2])
    columns = half_pixel_matrix(features.shape[3], planes.shape[3])
    cells = rows.T @ (planes @ columns)
    return cells.flatten(2) @ features.flatten(2).transpose(1, 2)


def masked_means(features: Tensor, cells: Tensor, epsilon: float) -> Tensor:
    """Averages features under masks of their own grid.

    Args:
        features: float32 [batch, C, h, w].
        cells: Masks, float32 [batch, K, h, w], fractions counting as such.
        epsilon: Added to the area of a mask.

    Returns:
        float32 [batch, K, C]; zero under an empty mask.
    """
    weights = cells.flatten(2)
    sums = weights @ features.flatten(2).transpose(1, 2)
    return sums / (weights.sum(dim=2, keepdim=True) + epsilon)


def triangle(positions: Tensor, stride: int) -> Tensor:
    """The bilinear kernel of FCN along one axis: 2 * stride taps, the middle ones the highest.

    Args:
        positions: Where to read it; outside of [0, 2 * stride) it is zero.
        stride: Of the resampling that it belongs to.

    Returns:
        Values in [0, 1); over whole positions they add up to ``stride``.
    """
    return (1.0 - (positions - (stride - 0.5)).abs() / stride).clamp(min=0.0)


def half_pixel_matrix(source: int, target: int) -> Tensor:
    """Writes torch's half-pixel bilinear resize of one axis as a matrix, inside a graph.

    Unlike `interpolation_matrix` of `export.methods.prototypes` it is computed from the lengths,
    which may be free.

    Args:
        source: Samples before.
        target: Samples after.

    Returns:
        float32 [target, source]; every row adds up to one.
    """
    ratio = source / target
    centres = ((torch.arange(target) + 0.5) * ratio - 0.5).clamp(min=0.0)
    # Beyond the last sample it is repeated.
    centres = torch.minimum(centres, torch.full_like(centres, source - 1))
    return (1.0 - (centres[:, None] - torch.arange(source)[None]).abs()).clamp(min=0.0)


def corner_matrix(source: int, target: int) -> Tensor:
    """Writes a bilinear resize of one axis, corners on corners, as float32 [target, source]."""
    identity = torch.eye(source)[None, :, :, None]
    resized = nn.functional.interpolate(
        identity, size=(target, 1), mode="bilinear", align_corners=True
    )
    return resized[0, :, :, 0].T.contiguous()


def one_by_one(step: Callable[..., Tensor], *items: Tensor) -> Tensor:
    """Applies a step to one item after another, so that what it needs is in memory once.

    A graph gets an ONNX Scan of it, whose body sees the tensors around it too.

    Args:
        step: From an item's tensors to its result.
        items: Tensors whose axis 0 counts the items.

    Returns:
        The results along a new axis 0.
    """
    if not torch.compiler.is_exporting():
        return torch.stack([step(*item) for item in zip(*items, strict=True)])

    def scanned(carried: Tensor, item: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return carried.clone(), step(*item)

    # Scan wants something to hand on.
    results: Tensor = scan(scanned, torch.zeros(1), items)[1]
    return results


def folded(
    step: Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    items: Tensor,
) -> tuple[Tensor, ...]:
    """Hands a state from step to step; a graph gets an ONNX Scan of it.

    Args:
        step: From a state and an item to the next state, of the same shapes.
        state: The first one.
        items: Axis 0 counts the steps.

    Returns:
        The last state.
    """
    if not torch.compiler.is_exporting():
        for item in items:
            state = step(state, item)
        return state

    def scanned(carried: tuple[Tensor, ...], item: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        # Scan wants something to collect.
        return step(carried, item), item.clone()

    results: tuple[Tensor, ...] = scan(scanned, state, items)[0]
    return results
