from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.errors import OutOfLimitsError
from service.core.family import GuidanceTensor, MergeRule, ModelFamily, WayAxis
from service.core.merging import bucket, cut_shot, merge_shots, pad_guidance, pad_ways
from tests.helpers.families import panet_like

WEIGHTED = GuidanceTensor(
    "prototypes", MergeRule.WEIGHTED_MEAN, WayAxis.BACKGROUND_AND_WAYS, weight="weights"
)


def family_with(*tensors: GuidanceTensor, **changes: Any) -> ModelFamily:
    return replace(panet_like(), guidance=tensors, **changes)


rows = hnp.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32))
weights = hnp.arrays(np.float32, (3,), elements=st.sampled_from([0.0, 1.0, 2.0, 5.0]))
shots = st.lists(st.tuples(rows, weights), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(shots, st.randoms())
def test_a_weighted_mean_does_not_depend_on_the_order_of_shots(
    given_shots: Any, random: Any
) -> None:
    family = family_with(WEIGHTED)
    one = [{"prototypes": p, "weights": w} for p, w in given_shots]
    other = list(one)
    random.shuffle(other)
    np.testing.assert_allclose(
        merge_shots(family, one)["prototypes"],
        merge_shots(family, other)["prototypes"],
        rtol=1e-6,
        atol=1e-6,
    )


@settings(max_examples=100, deadline=None)
@given(shots)
def test_a_weighted_mean_is_sum_over_sum_and_zero_without_weight(given_shots: Any) -> None:
    merged = merge_shots(
        family_with(WEIGHTED), [{"prototypes": p, "weights": w} for p, w in given_shots]
    )["prototypes"]
    total = sum(w.astype(float) for _, w in given_shots)
    for row in range(3):
        if total[row] == 0:
            assert not merged[row].any()
        else:
            wanted = sum(w[row] * p[row].astype(float) for p, w in given_shots) / total[row]
            np.testing.assert_allclose(merged[row], wanted, rtol=1e-5, atol=1e-5)


def test_mean_and_stack_keep_dtype_and_order() -> None:
    family = family_with(
        GuidanceTensor("vector", MergeRule.MEAN, WayAxis.NONE),
        GuidanceTensor("prior", MergeRule.STACK, WayAxis.NONE, validity="valid"),
    )
    given_shots = [
        {"vector": np.full((2,), i, np.float32), "prior": np.full((3,), i, np.float16)}
        for i in range(3)
    ]
    merged = merge_shots(family, given_shots)
    assert merged["vector"].tolist() == [1.0, 1.0]
    assert merged["prior"].dtype == np.float16
    assert merged["prior"][:, 0].tolist() == [0, 1, 2]


def test_padding_fills_ways_and_shots_up_to_their_buckets() -> None:
    family = family_with(
        WEIGHTED,
        GuidanceTensor("prior", MergeRule.STACK, WayAxis.WAYS, validity="valid"),
        way_buckets=(1, 4),
        shot_buckets=(2, 8),
    )
    merged = {
        "prototypes": np.ones((3, 5), np.float32),
        "prior": np.ones((3, 2, 7), np.float32),
    }
    padded = pad_guidance(family, merged, ways=2)
    assert padded["prototypes"].shape == (1, 5, 5)
    assert padded["prior"].shape == (1, 8, 4, 7)
    assert padded["valid"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert padded["prototypes"][0, 3:].sum() == 0
    assert padded["prior"].sum() == 3 * 2 * 7


STORED = GuidanceTensor("stored", MergeRule.STACK, WayAxis.WAYS, validity="valid", positions=True)
ragged = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(ragged, st.integers(0, 4))
def test_stored_positions_are_kept_compact_and_padded_when_sent(
    lengths: list[int], extra: int
) -> None:
    family = family_with(STORED, way_buckets=(4,), shot_buckets=(8,), position_buckets=(3, 6, 12))
    kept = []
    for number, length in enumerate(lengths, 1):
        # Two real ways, the first one busier; two padded ones; a batch's busier neighbour.
        outputs = np.zeros((1, 4, length + extra, 5), np.float16)
        outputs[0, 0, :length] = number
        outputs[0, 1, : (length + 1) // 2] = -number
        kept.append(cut_shot(family, {"stored": outputs}, 2))
        assert kept[-1]["stored"].shape == (2, length, 5)
    padded = pad_guidance(family, merge_shots(family, kept), ways=2)
    room = next(one for one in (3, 6, 12) if one >= max(lengths))
    assert padded["stored"].shape == (1, 8, 4, room, 5)
    assert padded["stored"].dtype == np.float16
    assert padded["valid"].sum() == len(lengths)
    for number, length in enumerate(lengths, 1):
        shot = padded["stored"][0, number - 1]
        assert (shot[0, :length] == number).all()
        assert (shot[1, : (length + 1) // 2] == -number).all()
    assert np.count_nonzero(padded["stored"]) == 5 * sum(n + (n + 1) // 2 for n in lengths)


def test_a_shot_without_a_stored_position_keeps_one_row_of_zeros() -> None:
    family = family_with(STORED, position_buckets=(4,))
    cut = cut_shot(family, {"stored": np.zeros((1, 1, 7, 5), np.float16)}, 1)
    assert cut["stored"].shape == (1, 1, 5)


def test_planes_are_padded_and_shots_cut_back() -> None:
    family = family_with(WEIGHTED, way_buckets=(4,))
    planes = np.ones((1, 3, 2, 2), np.float32)
    assert pad_ways(planes, 2, family).shape == (1, 5, 2, 2)
    outputs = {"prototypes": np.ones((1, 5, 8), np.float32), "weights": np.ones((1, 5), np.float32)}
    cut = cut_shot(family, outputs, 2)
    assert (cut["prototypes"].shape, cut["weights"].shape) == ((3, 8), (3,))


def test_a_length_beyond_the_last_bucket_is_refused() -> None:
    assert bucket(3, (1, 2, 4), "classes") == 4
    with pytest.raises(OutOfLimitsError) as refusal:
        bucket(5, (1, 2, 4), "classes")
    assert refusal.value.reason == "TOO_MANY_CLASSES"
