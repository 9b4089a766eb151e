from __future__ import annotations

import pytest
import torch

from export.methods.blocks import (
    convolution_stage,
    corner_matrix,
    half_pixel_matrix,
    planar,
    triangle,
)


@pytest.mark.parametrize(("source", "target"), [(17, 129), (63, 500), (5, 5), (1, 9), (40, 13)])
def test_the_half_pixel_matrix_is_torchs_resize(source, target):
    signal = torch.randn(1, 2, source, generator=torch.Generator().manual_seed(source))
    wanted = torch.nn.functional.interpolate(signal, size=target, mode="linear")
    torch.testing.assert_close(signal @ half_pixel_matrix(source, target).T, wanted)


def test_the_triangle_is_the_kernel_of_fcn():
    taps = triangle(torch.arange(-2, 10), stride=4)
    expected = [0, 0, 1, 3, 5, 7, 7, 5, 3, 1, 0, 0]
    assert taps.tolist() == [tap / 8 for tap in expected]


def test_a_stage_numbers_its_layers_as_checkpoints_do():
    stage = torch.nn.Sequential(*convolution_stage(3, 8, 2, dilation=2))
    assert list(stage.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert stage(torch.zeros(1, 3, 9, 7)).shape == (1, 8, 9, 7)


def test_planar_keeps_every_value_in_its_place():
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 4, 3)
    assert planar(image)[0, 2, 1, 3] == image[0, 1, 3, 2]
    assert planar(image).dtype == torch.float32


@pytest.mark.parametrize(("source", "target"), [(129, 17), (17, 17), (9, 30)])
def test_the_corner_matrix_is_torchs_resize(source, target):
    mask = torch.rand(1, 1, source, 1)
    wanted = torch.nn.functional.interpolate(
        mask, size=(target, 1), mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(corner_matrix(source, target) @ mask[0, 0], wanted[0, 0])
