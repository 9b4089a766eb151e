from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.errors import GoldenError
from export.goldens import read_cases, read_keys, seeded_tensor

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "panet"


def test_seeded_weights_are_those_that_made_the_numbers():
    check = json.loads((GOLDENS / "cases.json").read_text())["weight_check"]
    ((description, digest),) = check.items()
    key = description.split()[0]
    tensor = seeded_tensor(key, read_keys(GOLDENS)[key], 11)
    assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest().startswith(digest)


@pytest.mark.parametrize(
    ("key", "shape", "low", "high"),
    [
        ("bn.running_mean", (500,), -0.5, 0.5),
        ("bn.running_var", (500,), 0.8, 1.2),
        ("bn.weight", (500,), 0.8, 1.2),
        ("conv.bias", (500,), -0.5, 0.5),
        ("attn.in_proj_bias", (500,), -0.5, 0.5),
    ],
)
def test_each_kind_of_tensor_has_its_range(key, shape, low, high):
    tensor = seeded_tensor(key, shape, 3)
    assert tensor.dtype == torch.float32
    assert low < tensor.min()
    assert tensor.max() < high
    assert tensor.equal(seeded_tensor(key, shape, 3))
    assert not tensor.equal(seeded_tensor(key, shape, 4))


def test_kernels_are_scaled_by_their_inputs_and_counters_are_zero():
    kernel = seeded_tensor("conv.weight", (64, 32, 3, 3), 0)
    assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (32 * 9)), rel=0.05)
    assert float(seeded_tensor("embedding", (5000,), 0).std()) == pytest.approx(1, rel=0.05)
    counter = seeded_tensor("bn.num_batches_tracked", (), 0)
    assert counter.dtype == torch.int64
    assert counter == 0


def test_cases_come_in_order_and_by_name():
    assert [case.name for case in read_cases(GOLDENS)] == [
        "s1_1way1shot_129",
        "s2_2way1shot_129",
        "s3_1way5shot_129",
    ]
    (case,) = read_cases(GOLDENS, ["s2_2way1shot_129"])
    assert (case.ways, case.shots, case.class_ids) == (2, 1, (15, 8))
    assert case.arrays["support_images"].shape == (2, 1, 129, 129, 3)


def test_a_case_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(GoldenError, match="no case s9; it has s1_1way1shot_129"):
        read_cases(GOLDENS, ["s9"])


def test_a_folder_without_goldens_is_refused(tmp_path):
    with pytest.raises(GoldenError, match="--goldens"):
        read_cases(tmp_path)
    (tmp_path / "cases.json").write_text("[]")
    with pytest.raises(GoldenError, match="no JSON object"):
        read_cases(tmp_path)
