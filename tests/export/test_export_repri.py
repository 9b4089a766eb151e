# SPDX-License-Identifier: Apache-2.0
"""RePRI: its checkpoints, its pooling, and the gradient that is written out in its graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export.errors import CheckpointError, ExportError
from export.methods.repri import (
    BINS,
    IGNORED,
    UPDATES,
    RepriDecode,
    RepriGuide,
    RepriNetwork,
    adaptive_matrix,
    first_state,
    nearest_places,
    update,
)
from export.methods.trunks import Backbone
from export.repri_family import repri_checkpoint, repri_family

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "repri"
SIDE, GRID = 41, 6


def tiny_state(backbone: str) -> dict[str, torch.Tensor]:
    """The official layout, in a file of next to no size."""
    keys = json.loads((GOLDENS / "keys.json").read_text())[backbone]
    return {
        f"module.{key}": torch.ones((), dtype=getattr(torch, dtype.removeprefix("torch."))).expand(
            shape
        )
        for key, (shape, dtype) in keys.items()
    }


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "vgg16_bn"])
def test_official_checkpoints_are_read_and_tell_their_trunk(backbone, tmp_path):
    state = tiny_state(backbone)
    content = {"epoch": 99, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, tmp_path / "best.pth")
    network = repri_checkpoint(tmp_path / "best.pth")
    assert not network.training
    own = {f"module.{key}": value.shape for key, value in network.state_dict().items()}
    assert own == {key: value.shape for key, value in state.items()}


def test_the_number_of_base_classes_is_the_file_s_own(tmp_path):
    state = tiny_state("vgg16_bn")
    state["module.classifier.weight"] = torch.ones(61, 512, 1, 1)
    state["module.classifier.bias"] = torch.ones(61)
    torch.save({"state_dict": state}, tmp_path / "best.pth")
    assert repri_checkpoint(tmp_path / "best.pth").classifier.out_channels == 61


def test_files_of_other_networks_are_named(tmp_path):
    path = tmp_path / "best.pth"
    torch.save({"init_merge.0.0.weight": torch.ones(1), "down_query.0.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="looks like a PFENet checkpoint, not a RePRI"):
        repri_checkpoint(path)
    state = tiny_state("resnet50")
    torch.save({key: value.half() for key, value in state.items()}, path)
    with pytest.raises(CheckpointError, match="half precision"):
        repri_checkpoint(path)
    del state["module.bottleneck.1.bias"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"the first is bottleneck\.1\.bias"):
        repri_checkpoint(path)


@pytest.mark.parametrize("size", [(416, 416), (417, 97)])
def test_sizes_that_the_trunk_was_not_made_for_are_refused(size):
    with torch.device("meta"):
        network = RepriNetwork(Backbone.RESNET50, 16)
    with pytest.raises(ExportError, match="multiple of 8"):
        repri_family(alias="repri", network=network, size=size, provenance={})


@pytest.mark.parametrize("source", [13, 53, 6, 27])
def test_the_pyramid_pools_as_torch_does(source):
    maps = torch.rand(1, 2, source, source)
    for side in BINS:
        matrix = adaptive_matrix(source, side)
        wanted = torch.nn.functional.adaptive_avg_pool2d(maps, side)
        torch.testing.assert_close(matrix @ maps @ matrix.T, wanted)


@pytest.mark.parametrize(("size", "grid"), [(417, 53), (97, 13), (473, 60), (417, 27)])
def test_labels_are_resized_as_torch_does(size, grid):
    axis = torch.arange(size, dtype=torch.float32)[None, None]
    picked = torch.nn.functional.interpolate(axis, size=grid, mode="nearest")[0, 0]
    assert nearest_places(size, grid).tolist() == picked.tolist()


def units(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, 512) + 1, dim=-1).half()


def test_every_way_has_the_rest_for_its_background():
    torch.manual_seed(0)
    features, planes = units(1, GRID * GRID), torch.zeros(1, 4, SIDE, SIDE)
    planes[0, 0, :30, :20] = 1
    planes[0, 1, :30, 20:30] = 1
    planes[0, 2, :30, 30:] = 1
    vectors, labels, prototypes, areas = RepriGuide(SIDE, GRID)(features, planes)
    assert torch.equal(vectors, features)
    cells = torch.nn.functional.interpolate(planes, size=(GRID, GRID), mode="nearest").flatten(2)[0]
    unknown = cells.amax(dim=0) == 0
    assert unknown.any()
    for way in (1, 2):
        wanted = torch.where(unknown, torch.tensor(IGNORED), cells[way])
        assert torch.equal(labels[0, way - 1], wanted)
        mean = (features[0].float() * cells[way, :, None]).sum(dim=0) / cells[way].sum()
        torch.testing.assert_close(prototypes[0, way - 1], mean)
    assert (labels[0, 2] == IGNORED).all(), "a shot that does not show a way says nothing of it"
    assert areas.tolist() == [[cells[1].sum(), cells[2].sum(), 0]]


def official_loss(case, weights, bias, share, divergence_weight):
    """The loss of section 1 of the specification, one episode, as its authors write it."""
    query, inside, support, labels, shots = case

    def foreground(vectors):
        cosines = vectors @ weights / (vectors.norm(dim=1) * weights.norm() + 1e-10)
        return torch.sigmoid(20 * cosines - bias)

    seen, known = foreground(query)[inside], foreground(support)
    both = torch.stack([1 - seen, seen])
    target = torch.stack([1 - labels, labels])
    entropy = -(both * torch.log(both + 1e-10)).sum(dim=0).mean()
    cross = -(target * torch.log(torch.stack([1 - known, known]) + 1e-10)).sum(dim=0).mean()
    mean = both.mean(dim=1)
    estimate = torch.stack([1 - share, share])
    divergence = (mean * torch.log(mean / (estimate + 1e-10))).sum()
    return cross + divergence_weight * divergence + entropy / shots


@pytest.fixture
def episode():
    """Three shots, of which the last is padded, two ways; the second shot shows the first only."""
    torch.manual_seed(1)
    cells = GRID * GRID
    features, vectors = units(1, cells), units(1, 3, cells)
    labels = (torch.rand(1, 3, 2, cells) > 0.6).float()
    labels[torch.rand(1, 3, 2, cells) > 0.8] = IGNORED
    labels[0, 1, 1] = IGNORED
    prototypes = units(1, 2).float()
    validity, extent = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[24.0, 40.0]])
    return features, vectors, labels, prototypes, validity, extent


def test_steps_follow_the_gradient_of_the_loss(episode):
    features, vectors, labels, prototypes, validity, extent = episode
    decode = RepriDecode(SIDE, GRID)
    evidence = decode.evidence(features, vectors, labels, validity, extent)
    state = first_state(evidence, prototypes)
    for refresh in decode.refreshes[8:11]:
        weights, bias, share, divergence_weight = (part.clone() for part in state)
        state = update(evidence, state, refresh)
        for way, shots in ((0, 2), (1, 1)):
            inside = torch.zeros(GRID, GRID, dtype=torch.bool)
            inside[:4] = True  # rows 0, 6, 13 and 20 lie within 24
            known = labels[0, :2, way].flatten() >= 0
            case = (
                features[0].float(),
                inside.flatten(),
                vectors[0, :2].float().flatten(0, 1)[known],
                labels[0, :2, way].flatten()[known],
                shots,
            )
            w = weights[0, way].clone().requires_grad_()
            b = bias[0, way, 0].clone().requires_grad_()
            estimate, weight = share[0, way, 0], divergence_weight[0, way, 0]
            if refresh:
                estimate, weight = state[2][0, way, 0], weight + 1
            official_loss(case, w, b, estimate, weight).backward()
            moved = w.detach() - 0.025 * w.grad
            torch.testing.assert_close(state[0][0, way], moved, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(state[1][0, way, 0], b.detach() - 0.025 * b.grad)


@pytest.mark.parametrize("updates", [9, 10, 50])
def test_a_fit_has_as_many_updates_as_asked_for(updates):
    """One shot and one way, and the descent of section 4 by automatic differentiation."""
    torch.manual_seed(2)
    cells = GRID * GRID
    features, vectors, prototypes = units(1, cells), units(1, 1, cells), units(1, 1).float()
    labels = (torch.rand(1, 1, 1, cells) > 0.6).float()
    extent = torch.tensor([[24.0, 40.0]])
    decode = RepriDecode(SIDE, GRID, updates)
    found = decode(features, vectors, labels, prototypes, torch.ones(1, 1), extent)

    query, inside = features[0].float(), torch.arange(cells) < 24
    weights, weight = prototypes[0, 0], 1.0

    def margins():
        cosines = query @ weights / (query.norm(dim=1) * weights.norm() + 1e-10)
        return 20 * cosines - bias

    bias = torch.zeros(())
    bias = margins().mean()
    share = torch.sigmoid(margins())[inside].mean()
    case = (query, inside, vectors[0, 0].float(), labels.flatten(), 1)
    for number in range(1, updates + 1):
        if number == 10:
            share, weight = torch.sigmoid(margins())[inside].mean(), weight + 1
        w, b = weights.clone().requires_grad_(), bias.clone().requires_grad_()
        official_loss(case, w, b, share, weight).backward()
        weights, bias = weights - 0.025 * w.grad, bias - 0.025 * b.grad
    torch.testing.assert_close(found.flatten(), margins(), rtol=1e-3, atol=1e-3)
    other = RepriDecode(SIDE, GRID, updates - 1)
    before = other(features, vectors, labels, prototypes, torch.ones(1, 1), extent)
    assert float((found - before).abs().max()) > 1e-2


@pytest.mark.parametrize("updates", [0, -1, 1001])
def test_a_number_of_updates_out_of_bounds_is_refused(updates):
    with torch.device("meta"):
        network = RepriNetwork(Backbone.RESNET50, 16)
    with pytest.raises(ExportError, match=f"1 to 1000 updates, not {updates}"):
        repri_family(alias="repri", network=network, size=(97, 97), provenance={}, updates=updates)


def test_ways_and_queries_do_not_see_each_other(episode):
    features, vectors, labels, prototypes, validity, extent = episode
    decode = RepriDecode(SIDE, GRID)
    assert len(decode.refreshes) == UPDATES
    both = (torch.cat([tensor, tensor.flip(-1)]) for tensor in episode)
    together = decode(*both)
    assert together.shape == (2, 2, 1, GRID, GRID)
    for way in (0, 1):
        alone = decode(
            features, vectors, labels[:, :, way, None], prototypes[:, way, None], validity, extent
        )
        torch.testing.assert_close(together[:1, way], alone[:, 0], rtol=1e-4, atol=1e-3)
