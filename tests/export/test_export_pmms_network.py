"""PMMs and RPMMs against their specification, written out the slow way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from export.methods.pmms import PmmsDecode, PmmsGuide, PmmsMerge, PmmsNetwork, PmmsQuery

KEYS = Path(__file__).parents[1] / "parity" / "goldens" / "pmms" / "keys.json"
SIZE, GRID = (57, 41), (8, 6)
SEED = 3


@pytest.fixture(scope="module", params=[False, True], ids=["PMMs", "RPMMs"])
def network(request: pytest.FixtureRequest) -> PmmsNetwork:
    torch.manual_seed(1)
    network = PmmsNetwork(recurrent=request.param).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network


def test_the_state_dict_is_that_of_official_checkpoints(network):
    name = "RPMMs_resnet50" if network.recurrent else "PMMs_resnet50"
    official = json.loads(KEYS.read_text())[name]
    own = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert own == {key: entry["shape"] for key, entry in official.items()}


def resized(masks: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(masks, size=GRID, mode="bilinear", align_corners=True)


def mixture(points: Tensor, start: Tensor) -> Tensor:
    """Expectation and maximisation over points [256, P], from directions [256, k]."""
    mu = start
    for _ in range(10):
        z = torch.softmax(20 * points.T @ mu, dim=1)
        z = z / (1e-6 + z.sum(dim=0, keepdim=True))
        mu = points @ z
        mu = mu / (1e-6 + mu.norm(dim=0, keepdim=True))
    return mu


def mixtures(features: list[Tensor], masks: list[Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """Those of shots that are put below each other, as the official code does it."""
    shots = torch.cat(features, dim=1).flatten(1)
    mask = torch.cat([resized(one[None, None])[0, 0] for one in masks], dim=0).flatten()
    return mixture(mask * shots, start), mixture((1 - mask) * shots, start)


def straightforward(
    network: PmmsNetwork, query: Tensor, features: list[Tensor], masks: list[Tensor], starts: Tensor
) -> list[Tensor]:
    """Logits [2, h, w] of each stage."""
    history = torch.zeros(1, 2, *GRID)
    stages = []
    for start in starts.split(network.mixtures):
        mu_f, mu_b = mixtures(features, masks, start.T)
        k = start.shape[0]
        belonging = torch.softmax(query.flatten(1).T @ torch.cat([mu_f, mu_b], dim=1), dim=1)
        objects, others = belonging[:, :k].sum(1), belonging[:, k:].sum(1)
        prior = torch.stack([others, objects]).reshape(1, 2, *GRID)
        summed = torch.zeros(1, 256, *GRID)
        for i in range(k):
            tiled = mu_f[:, i, None, None].expand(-1, *GRID)
            summed = summed + network.layer55(torch.cat([query, tiled])[None])
        if network.recurrent:
            h, seen = network.layer56(torch.cat([summed, prior], dim=1)), history
        else:
            h, seen = network.layer56(summed), prior
        o = h + network.residule1(torch.cat([h, seen], dim=1))
        o = o + network.residule2(o)
        o = o + network.residule3(o)
        levels = [network.layer6.get_submodule(f"layer6_{number}") for number in range(5)]
        whole = levels[0](o.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *GRID)
        o = network.layer7(torch.cat([whole, *(level(o) for level in levels[1:])], dim=1))
        logits = network.layer9(o)
        history = torch.softmax(logits, dim=1)
        stages.append(logits[0])
    return stages


def graphs(
    network: PmmsNetwork, query: Tensor, features: list[Tensor], planes: Tensor, *, summed: bool
) -> Tensor:
    """Logits [ways, h, w] by the graphs, with a padded shot at the end."""
    guide = PmmsGuide(SIZE, GRID)
    guided = [guide(one[None], plane[None]) for one, plane in zip(features, planes, strict=True)]
    foreground, background = (torch.stack(cells, dim=1) for cells in zip(*guided, strict=True))
    padded = [
        torch.cat([tensor, torch.zeros_like(tensor[:, :1])], dim=1)
        for tensor in (torch.stack(features)[None], foreground, background)
    ]
    validity = torch.tensor([[1.0] * len(features) + [0.0]])
    merged = PmmsMerge(network.mixtures, SEED)(*padded, validity)
    decode = PmmsDecode(network, GRID, summed=summed)
    return decode(*PmmsQuery(network)(query[None]), *merged)[0, :, 0]


@pytest.mark.parametrize("shots", [1, 2])
def test_graphs_compute_what_the_specification_says(network, shots):
    torch.manual_seed(shots)
    query, *features = torch.relu(torch.randn(1 + shots, 256, *GRID))
    labels = torch.randint(0, 3, (shots, *SIZE))
    planes = torch.stack([(labels == value).float() for value in range(3)], dim=1)
    with torch.no_grad():
        starts = PmmsMerge(network.mixtures, SEED).start
        for summed in (False, True):
            found = graphs(network, query, features, planes, summed=summed)
            for way in (1, 2):
                masks = [(one == way).float() for one in labels]
                stages = straightforward(network, query, features, masks, starts)
                if summed:
                    probabilities = torch.stack([torch.softmax(one, dim=0) for one in stages])
                    wanted = (probabilities[:, 1] - probabilities[:, 0]).mean(dim=0)
                else:
                    wanted = stages[-1][1] - stages[-1][0]
                scale = float(wanted.abs().max())
                assert float((found[way - 1] - wanted).abs().max()) < 2e-5 * max(scale, 1e-3)


def test_a_shot_that_does_not_show_a_way_says_nothing_of_it():
    planes = torch.zeros(1, 3, *SIZE)
    planes[0, 0, :20], planes[0, 1, 20:] = 1, 1
    foreground, background = PmmsGuide(SIZE, GRID)(torch.zeros(1, 256, *GRID), planes)
    assert foreground[0, 0].max() == 1
    assert background[0, 0].max() == 1
    assert float(foreground[0, 1].abs().max()) == float(background[0, 1].abs().max()) == 0


def test_the_search_starts_where_its_seed_says():
    first, again, other = (PmmsMerge((1, 3), seed).start for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.allclose(first.norm(dim=1), torch.ones(4))
