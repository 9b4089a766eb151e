from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export import torchvision_compat
from export.errors import ExportError
from export.methods.panet import PanetTrunk
from export.torchvision_compat import import_torchvision

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "panet"


@pytest.fixture(scope="module")
def trunk() -> PanetTrunk:
    torch.manual_seed(0)
    return PanetTrunk().eval()


def test_the_state_dict_is_that_of_official_checkpoints(trunk):
    official = json.loads((GOLDENS / "keys.json").read_text())
    own = {f"module.{key}": list(tensor.shape) for key, tensor in trunk.state_dict().items()}
    assert own == {key: entry["shape"] for key, entry in official.items()}


@pytest.mark.parametrize("size", [(33, 48), (64, 65)])
def test_the_grid_of_features_is_as_computed(trunk, size):
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, *size))
    assert features.shape == (1, trunk.feature_channels, *PanetTrunk.grid_size(*size))


def test_official_sizes_give_the_official_grids():
    assert PanetTrunk.grid_size(417, 417) == (53, 53)
    assert PanetTrunk.grid_size(129, 129) == (17, 17)


def test_features_may_be_negative(trunk):
    with torch.no_grad():
        assert (trunk(torch.randn(1, 3, 32, 32)) < 0).any()


def test_weights_of_torchvision_land_in_the_same_layers(trunk):
    """Chaining torchvision's own convolutions the way PANet does gives PANet's features."""
    vgg16 = import_torchvision().models.vgg16(weights=None).eval()
    # The pools, the dilation of the last stage and the missing last ReLU are PANet's.
    layers = list(vgg16.features)[:29]
    for index, stride in ((4, 2), (9, 2), (16, 2), (23, 1)):
        layers[index] = torch.nn.MaxPool2d(3, stride, padding=1)
    for index in (24, 26, 28):
        layers[index].dilation, layers[index].padding = (2, 2), (2, 2)
    trunk.load_state_dict(PanetTrunk.from_torchvision_keys(vgg16.state_dict()))
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected = torch.nn.Sequential(*layers)(image)
        torch.testing.assert_close(trunk(image), expected, atol=1e-6, rtol=1e-5)


def test_torchvision_imports_once():
    assert import_torchvision() is import_torchvision()
    assert import_torchvision().models.VGG16_Weights.IMAGENET1K_V1.url.endswith("397923af.pth")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ModuleNotFoundError("No module named 'torchvision'"), "is not installed"),
        (RuntimeError("undefined symbol"), "does not import beside torch"),
    ],
)
def test_a_torchvision_that_does_not_import_is_explained(monkeypatch, failure, words):
    def fail():
        raise failure

    monkeypatch.setattr(torchvision_compat, "_import", fail)
    with pytest.raises(ExportError, match=words) as caught:
        import_torchvision.__wrapped__()
    assert "fewseg[export]" in str(caught.value)
