"""What training computes must be what is served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.methods.prototypes import PrototypeDecode, PrototypeGuide
from training.evaluate import AnnotatedSet, Reading, read_set
from training.head import masked_average, score


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def planes() -> torch.Tensor:
    chance = torch.rand(1, 2, 20, 28, generator=torch.Generator().manual_seed(1))
    return (chance > 0.8).float()


def test_the_head_that_is_trained_is_the_head_that_is_exported(
    features: torch.Tensor, planes: torch.Tensor
) -> None:
    prototypes, _ = PrototypeGuide((20, 28), (5, 7))(features, planes)
    trained = masked_average(features, planes)
    torch.testing.assert_close(trained.reshape(prototypes.shape), prototypes, rtol=1e-5, atol=1e-5)
    logits = PrototypeDecode()(features, prototypes)
    torch.testing.assert_close(
        score(features, trained).reshape(logits.shape), logits, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("shots", [1, 2])
def test_a_set_whose_colours_tell_everything_is_read_as_perfect(tmp_path: Path, shots: int) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "red").mkdir(parents=True)
    names = ["a", "b", "c"]
    for number, name in enumerate(names):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[..., 1] = 200
        mask = np.zeros((32, 32), np.uint8)
        mask[8 * number : 8 * number + 16, 8:24] = 255
        pixels[mask > 0] = (200, 0, 0)
        Image.fromarray(pixels).save(
            tmp_path / "images" / f"{name}.jpg", quality=100, subsampling=0
        )
        Image.fromarray(mask).save(tmp_path / "masks" / "red" / f"{name}.png")
    (tmp_path / "index.json").write_text(json.dumps({"red": names}))
    images = AnnotatedSet(tmp_path, lambda pixels: pixels.float() - 100, size=32)
    assert read_set(images, Reading(size=32, shots=shots))["red"] > 0.99
    wrong = AnnotatedSet(tmp_path, lambda pixels: torch.ones(len(pixels), 3, 32, 32), size=32)
    assert read_set(wrong, Reading(size=32, shots=shots))["red"] < 0.5
