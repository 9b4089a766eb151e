from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export.canet_family import ShotMerge, canet_checkpoint, canet_family
from export.errors import CheckpointError, ExportError
from export.methods.canet import (
    CanetDecode,
    CanetGuide,
    CanetNetwork,
    CanetQuery,
    CanetScaledDecode,
    CanetShotsDecode,
)
from export.methods.refinement import convolution_at
from export.methods.scaled import PhiFeatures, ScaledQuery

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "canet"
GRID = (9, 7)


@pytest.fixture(scope="module")
def network() -> CanetNetwork:
    torch.manual_seed(0)
    return CanetNetwork().eval()


def tiny_state(network: CanetNetwork) -> dict[str, torch.Tensor]:
    """The official layout, in a file of next to no size."""
    return {
        f"module.{key}": torch.ones((), dtype=value.dtype).expand(value.shape)
        for key, value in network.state_dict().items()
    }


def test_the_state_dict_is_that_of_official_checkpoints(network):
    official = json.loads((GOLDENS / "keys.json").read_text())
    own = {f"module.{key}": list(value.shape) for key, value in network.state_dict().items()}
    assert own == {key: entry["shape"] for key, entry in official.items()}


@pytest.mark.parametrize(
    ("size", "grid"), [((321, 321), (41, 41)), ((129, 137), (17, 18)), ((320, 161), (41, 21))]
)
def test_the_grid_is_that_of_a_pool_that_rounds_up(network, size, grid):
    """Layers that keep the grid are left out, as they cost most."""
    with torch.no_grad():
        maps = network.maxpool(network.conv1(torch.zeros(1, 3, *size)))
        assert network.layer2[0](torch.zeros(1, 256, *maps.shape[2:])).shape[2:] == grid


def test_a_checkpoint_of_data_parallel_training_is_read(network, tmp_path):
    torch.save(tiny_state(network), tmp_path / "best.pth")
    read = canet_checkpoint(tmp_path / "best.pth")
    assert not read.training
    assert float(read.layer1[0].bn1.running_mean[0]) == 1


def test_files_of_other_networks_are_named(network, tmp_path):
    path = tmp_path / "best.pth"
    torch.save({"layer1.0.conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="looks like torchvision's ResNet, not a CANet"):
        canet_checkpoint(path)
    state = tiny_state(network)
    torch.save({**state, "module.layer4.0.conv1.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 keys do not belong, the first is layer4\.0"):
        canet_checkpoint(path)
    torch.save({key: value.half() for key, value in state.items()}, path)
    with pytest.raises(CheckpointError, match="half precision"):
        canet_checkpoint(path)


@pytest.mark.parametrize("fixed", [((65, 50), GRID), None])
def test_vectors_are_averages_under_soft_masks(fixed):
    features = torch.rand(1, 256, *GRID)
    planes = (torch.rand(1, 3, 65, 50) > 0.5).float()
    planes[0, 2] = 0
    vectors, weights = CanetGuide(fixed)(features, planes)
    soft = torch.nn.functional.interpolate(
        planes[:, 1:2], size=GRID, mode="bilinear", align_corners=True
    )
    wanted = (features * soft).sum(dim=(2, 3)) / (soft.sum() + 5e-4)
    torch.testing.assert_close(vectors[:, 0], wanted, rtol=1e-4, atol=1e-6)
    assert weights.tolist() == [[1, 0]]
    assert not vectors[0, 1].any()


def official_pass(network, features, vector, history):
    """Steps 4 to 7 of the specification, with tiled vectors and both channels everywhere."""
    tiled = vector[:, :, None, None].expand(-1, -1, *features.shape[2:])
    compared = network.layer55(torch.cat([features, tiled], dim=1))
    history = torch.nn.functional.interpolate(
        history, size=features.shape[2:], mode="bilinear", align_corners=True
    )
    maps = compared + network.residule1(torch.cat([compared, history], dim=1))
    maps = maps + network.residule2(maps)
    maps = maps + network.residule3(maps)
    pooled = network.layer6_0(maps.mean(dim=(2, 3), keepdim=True)).expand_as(maps)
    levels = [network.get_submodule(f"layer6_{n}")(maps) for n in range(1, 5)]
    return network.layer9(network.layer7(torch.cat([pooled, *levels], dim=1)))


def official_passes(network, features, vector, iterations):
    """Step 8: every pass sees the soft-max of the one before it."""
    history = torch.zeros(len(features), 2, *features.shape[2:])
    for _ in range(iterations):
        logits = official_pass(network, features, vector, history)
        history = logits.softmax(dim=1)
    return logits


def scaled_passes(network, image, vector, iterations):
    """The mean of three scales of a normalised image, as SCL's evaluation adds them up."""

    def resized(maps, size):
        return torch.nn.functional.interpolate(maps, size=size, mode="bilinear")

    size = image.shape[2:]
    history = torch.zeros(1, 2, *size)
    for _ in range(iterations):
        scales = []
        for scale in (0.7, 1.0, 1.3):
            scaled = resized(image, [int(side * scale) for side in size])
            logits = official_pass(network, network.phi(scaled), vector, history)
            scales.append(resized(logits, size))
        mean = torch.stack(scales).mean(dim=0)
        history = mean.softmax(dim=1)
    return mean


@pytest.fixture(scope="module")
def scaled_query(network):
    """A normalised image at its own size, and the graphs' comparison of it at three scales."""
    torch.manual_seed(3)
    photograph = torch.randint(0, 256, (1, 67, 91, 3), dtype=torch.uint8)
    with torch.no_grad():
        features, image = PhiFeatures(network, image=True)(photograph)
        query = ScaledQuery(network, convolution_at(network.layer55))(features, image)
    return image, query


def test_scales_of_a_query_are_averaged_pass_by_pass(network, scaled_query):
    image, query = scaled_query
    vectors, extent = torch.rand(1, 2, 256), torch.tensor([[67.0, 91.0]])
    with torch.no_grad():
        logits = CanetScaledDecode(network, 3)(*query, vectors, extent)
        for way in range(2):
            wanted = scaled_passes(network, image, vectors[:, way], 3)
            torch.testing.assert_close(
                logits[:, way, 0], wanted[:, 1] - wanted[:, 0], rtol=1e-3, atol=1e-4
            )


def test_probabilities_of_shots_are_averaged_at_several_scales(network, scaled_query):
    image, query = scaled_query
    vectors, extent = torch.rand(1, 3, 1, 256), torch.tensor([[67.0, 91.0]])
    vectors[0, 1] = 0
    with torch.no_grad():
        decode = CanetScaledDecode(network, 2)
        logits = decode(*query, vectors, extent, torch.tensor([[1.0, 1.0, 1.0]]))
        runs = [scaled_passes(network, image, vectors[:, shot, 0], 2) for shot in (0, 2)]
        mean = torch.stack([run.softmax(dim=1) for run in runs]).mean(dim=0)
    torch.testing.assert_close(logits[:, 0, 0], mean[:, 1] - mean[:, 0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("grid", [GRID, None])
@pytest.mark.parametrize("iterations", [1, 3])
def test_every_way_is_refined_as_a_run_of_its_own(network, iterations, grid):
    features, vectors = torch.rand(2, 256, *GRID), torch.rand(2, 3, 256)
    with torch.no_grad():
        compared = CanetQuery(network)(features)
        logits = CanetDecode(network, grid, iterations)(compared, vectors)
        for way in range(3):
            wanted = official_passes(network, features, vectors[:, way], iterations)
            torch.testing.assert_close(
                logits[:, way, 0], wanted[:, 1] - wanted[:, 0], rtol=1e-3, atol=1e-4
            )


def test_probabilities_are_averaged_over_the_shots_that_show_the_way(network):
    features, vectors = torch.rand(1, 256, *GRID), torch.rand(1, 4, 2, 256)
    vectors[0, 1, 0] = 0
    validity = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    with torch.no_grad():
        compared = CanetQuery(network)(features)
        logits = CanetShotsDecode(network, GRID, 2)(compared, vectors, validity)
        for way, shots in ((0, (0, 2)), (1, (0, 1, 2))):
            runs = [official_passes(network, features, vectors[:, shot, way], 2) for shot in shots]
            mean = torch.stack([run.softmax(dim=1) for run in runs]).mean(dim=0)
            torch.testing.assert_close(
                logits[:, way, 0], mean[:, 1] - mean[:, 0], rtol=1e-3, atol=1e-5
            )


def test_images_of_their_own_size_run_with_fewer_ways_shots_and_queries(network):
    def family(size, **options):
        return canet_family(
            alias="canet",
            network=network,
            size=size,
            provenance={},
            merge=ShotMerge.PROBABILITY,
            **options,
        )

    fixed, native = family((65, 65)), family(None)
    for made, ways, shots, batch in ((fixed, 32, 16, 8), (native, 8, 5, 2)):
        assert made.serving.way_buckets[-1] == ways
        assert made.serving.shot_buckets[-1] == shots
        assert made.max_batch == batch
    assert family(None, max_batch=3).max_batch == family((65, 65), max_batch=3).max_batch == 3


def test_settings_that_change_the_graphs_change_the_name(network):
    def name(size=(65, 65), **options):
        family = canet_family(alias="canet", network=network, size=size, provenance={}, **options)
        return family.name

    names = {name(), name(iterations=1), name(merge=ShotMerge.PROBABILITY)}
    names |= {name(None), name(None, multi_scale=True)}
    assert len(names) == 5
    assert name() == name(iterations=5)
    with pytest.raises(ExportError, match="1 to 20 iterations, not 0"):
        name(iterations=0)
    with pytest.raises(ExportError, match="give --size native"):
        name(multi_scale=True)
    with pytest.raises(ExportError, match="between 32 and 2048"):
        canet_family(alias="canet", network=network, size=(16, 16), provenance={})
