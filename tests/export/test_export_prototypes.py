from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from export.methods.prototypes import (
    COSINE_SCALE,
    PrototypeDecode,
    PrototypeGuide,
    interpolation_matrix,
)


def paper_average(features: Tensor, planes: Tensor) -> Tensor:
    """The paper's order of things: features are upsampled to the mask and then averaged."""
    raised = functional.interpolate(
        features, size=planes.shape[-2:], mode="bilinear", align_corners=False
    )
    sums = (raised[:, None] * planes[:, :, None]).sum(dim=(3, 4))
    return sums / (planes.sum(dim=(2, 3))[..., None] + 1e-5)


@settings(deadline=None, max_examples=50)
@given(
    size=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
    soft=st.booleans(),
)
def test_pooling_equals_the_average_of_upsampled_features(size, grid, seed, soft):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, *grid, generator=generator)
    planes = torch.rand(2, 3, *size, generator=generator)
    planes = planes if soft else (planes > 0.6).float()
    prototypes, _ = PrototypeGuide(size, grid)(features, planes)
    torch.testing.assert_close(prototypes, paper_average(features, planes), atol=2e-5, rtol=1e-4)


def test_an_interpolation_matrix_keeps_constants_and_matches_a_known_doubling():
    matrix = interpolation_matrix(2, 4)
    expected = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    torch.testing.assert_close(matrix, expected)
    torch.testing.assert_close(interpolation_matrix(53, 417).sum(1), torch.ones(417))


def test_an_empty_plane_gives_the_zero_prototype_and_no_weight():
    planes = torch.zeros(1, 3, 16, 16)
    planes[0, 1, 4:8, 4:8] = 1
    prototypes, weights = PrototypeGuide((16, 16), (2, 2))(torch.randn(1, 4, 2, 2), planes)
    assert prototypes[0, 0].eq(0).all()
    assert prototypes[0, 2].eq(0).all()
    assert weights.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(("shown", "weight"), [(0, 1.0), (1, 1.0), (2, 2.0), (3, 3.0)])
def test_background_weighs_as_many_shots_as_the_image_shows_ways(shown, weight):
    planes = torch.zeros(1, 5, 16, 16)
    planes[0, 0, :8] = 1
    for way in range(shown):
        planes[0, 1 + way, 9 + way] = 1
    _, weights = PrototypeGuide((16, 16), (2, 2))(torch.randn(1, 4, 2, 2), planes)
    assert weights[0, 0] == weight
    assert weights[0, 1:].sum() == shown


def test_padded_ways_do_not_touch_the_others():
    features, planes = torch.randn(1, 4, 2, 2), (torch.rand(1, 3, 16, 16) > 0.5).float()
    padded = torch.cat([planes, torch.zeros(1, 2, 16, 16)], dim=1)
    guide = PrototypeGuide((16, 16), (2, 2))
    prototypes, weights = guide(features, planes)
    more, more_weights = guide(features, padded)
    torch.testing.assert_close(more[:, :3], prototypes, rtol=1e-6, atol=1e-6)
    assert more_weights[:, :3].equal(weights)
    assert more_weights[:, 3:].eq(0).all()
    few = PrototypeDecode()(features, prototypes)
    many = PrototypeDecode()(features, more)
    torch.testing.assert_close(many[:, :3], few, rtol=1e-6, atol=1e-6)


def test_decode_is_twenty_times_the_cosine():
    features, prototypes = torch.randn(2, 6, 3, 5), torch.randn(2, 4, 6)
    logits = PrototypeDecode()(features, prototypes)
    expected = functional.cosine_similarity(features[:, None], prototypes[..., None, None], dim=2)
    assert logits.shape == (2, 4, 1, 3, 5)
    torch.testing.assert_close(logits[:, :, 0], COSINE_SCALE * expected, atol=1e-4, rtol=1e-5)


def test_zero_vectors_score_zero_and_never_nan():
    features, prototypes = torch.randn(1, 6, 2, 2), torch.zeros(1, 3, 6)
    assert PrototypeDecode()(features, prototypes).eq(0).all()
    assert PrototypeDecode()(torch.zeros(1, 6, 2, 2), torch.randn(1, 3, 6)).eq(0).all()
