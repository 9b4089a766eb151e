"""ASGNet against its specification, written out the slow way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from export.methods.asgnet import AsgnetDecode, AsgnetGuide, AsgnetNetwork, AsgnetQuery, Association
from export.methods.seeding import Seeding
from export.methods.trunks import Backbone

KEYS = Path(__file__).parents[1] / "parity" / "goldens" / "asgnet" / "keys.json"
SIZE, SIDE = 233, 30
BINS = (30.0, 15.0, 8.0, 4.0)


@pytest.fixture(scope="module")
def network() -> AsgnetNetwork:
    torch.manual_seed(1)
    return AsgnetNetwork(Backbone.RESNET50).eval()


def test_the_state_dict_is_that_of_official_checkpoints(network):
    official = json.loads(KEYS.read_text())["resnet50_pyramid"]
    own = {f"module.{key}": list(value.shape) for key, value in network.state_dict().items()}
    assert own == {key: entry["shape"] for key, entry in official.items()}


def opencv_nearest(mask: np.ndarray, side: int) -> np.ndarray:
    index = [min(int(i * (1.0 / (side / mask.shape[0]))), mask.shape[0] - 1) for i in range(side)]
    return mask[index][:, index]


def slow_seeds(mask: np.ndarray) -> np.ndarray:
    """The loader's table of five rows and columns, unused ones zero."""
    small = opencv_nearest(mask, SIDE)
    table = np.zeros((5, 2), dtype=int)
    rows, columns = np.nonzero(small)
    if not len(rows):
        return table
    top, left = rows.min(), columns.min()
    crop = small[top : rows.max() + 1, left : columns.max() + 1] > 0
    count = min(round(small.sum() / 100), 5)
    for number in range(count if count >= 2 else 0):
        distance = distance_transform_edt(crop)
        deepest = np.unravel_index(distance.argmax(), crop.shape)
        table[number] = deepest[0] + top, deepest[1] + left
        crop[deepest] = False
    return table


def blob(seed: int, reach: float) -> np.ndarray:
    """An object of irregular outline."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(0.3, 0.7, 2) * SIZE
    rows, columns = np.mgrid[:SIZE, :SIZE]
    angle = np.arctan2(rows - centre[0], columns - centre[1])
    edge = reach * (1 + 0.3 * np.sin(3 * angle + seed) + 0.1 * np.sin(7 * angle))
    return (np.hypot(rows - centre[0], columns - centre[1]) < edge).astype(np.float32)


def box() -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.float32)
    mask[40:170, 20:200] = 1
    return mask


MASKS = {
    "large": blob(1, 85),
    "middle": blob(2, 55),
    "small": blob(3, 20),
    "box": box(),
    "corner": np.where(np.add.outer(np.arange(SIZE), np.arange(SIZE)) < 190, 1.0, 0.0),
    "none": np.zeros((SIZE, SIZE)),
}


@pytest.mark.parametrize("name", MASKS)
def test_seeds_are_those_of_the_distance_transform(name):
    mask = MASKS[name].astype(np.float32)
    table = slow_seeds(mask)
    counted = max(np.count_nonzero(table[:, 0]), np.count_nonzero(table[:, 1]))
    seeds = Seeding(SIZE, SIDE)(torch.tensor(mask)[None])
    # With fewer than two wanted, the network takes the mean whatever the table says.
    assert max(int(seeds.counted[0]), 1) == max(counted, 1)
    if counted >= 2:
        found = torch.stack([seeds.cells[0] // SIDE, seeds.cells[0] % SIDE], dim=1)
        assert found[:counted].tolist() == table[:counted].tolist()


def slow_prototypes(features: Tensor, mask: np.ndarray, power: int = 1) -> Tensor:
    """Prototypes [n, 256] of one shot by section "Support side" of the specification."""
    table = slow_seeds(mask)
    counted = max(np.count_nonzero(table[:, 0]), np.count_nonzero(table[:, 1]))
    cells = torch.tensor(mask[::8, ::8])
    if counted < 2:
        return ((features * cells).sum(dim=(1, 2)) / (cells.sum() + 0.0005))[None]
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    placed = torch.cat([features, rows[None].float(), columns[None].float()])
    points = placed[:, cells == 1].double()
    centres = torch.stack([placed[:, r, c] for r, c in table[:counted]]).double()
    for _ in range(5):
        apart = centres[:, :, None] - points[None]
        distance = (apart[:, :256].square().sum(1) + apart[:, 256:].square().sum(1) / 100).sqrt()
        distance = distance**power
        share = torch.exp(-(distance - distance.amin(dim=1, keepdim=True)))
        centres = (share / share.sum(dim=1, keepdim=True)) @ points.T
    return centres[:, :256].float()


def slow_logits(network: AsgnetNetwork, query: Tensor, prototypes: Tensor) -> Tensor:
    """Logits [2, f, f] of a query [256, f, f] by section "Query side", scale by scale."""
    resize = torch.nn.functional.interpolate
    cosines = torch.cosine_similarity(prototypes[:, :, None, None], query[None], dim=1, eps=1e-7)
    guide = prototypes[cosines.argmax(dim=0)].permute(2, 0, 1)
    levels: list[Tensor] = []
    for scale, side in enumerate(int(one) for one in BINS):
        pooled = torch.nn.functional.adaptive_avg_pool2d(torch.cat([query, guide])[None], side)
        alike = resize(
            cosines.sum(dim=0)[None, None], (side, side), mode="bilinear", align_corners=True
        )
        maps = network.corr_conv[scale](torch.cat([pooled, alike], dim=1))
        if scale:
            seen = resize(levels[-1], (side, side), mode="bilinear", align_corners=True)
            maps = network.alpha_conv[scale - 1](torch.cat([maps, seen], dim=1)) + maps
        maps = network.beta_conv[scale](maps) + maps
        levels.append(resize(maps, (SIDE, SIDE), mode="bilinear", align_corners=True))
    maps = network.res1(torch.cat(levels, dim=1))
    return network.cls(network.res2(maps) + maps)[0]


@pytest.mark.parametrize("association", Association)
def test_points_belong_to_clusters_by_their_distance_or_its_square(network, association):
    torch.manual_seed(5)
    features, mask = 0.2 * torch.randn(256, SIDE, SIDE), MASKS["large"].astype(np.float32)
    planes = torch.tensor(np.stack([0 * mask, mask]))[None]
    with torch.no_grad():
        guide = AsgnetGuide(network, SIZE, association)
        (found,), (real,) = guide(features[None], planes)
    power = {Association.DISTANCE: 1, Association.SQUARE: 2}[association]
    wanted = slow_prototypes(features, mask, power)
    assert int(real[0].sum()) == len(wanted) > 1
    torch.testing.assert_close(found[0, : len(wanted)], wanted, rtol=1e-4, atol=1e-5)
    other = slow_prototypes(features, mask, 3 - power)
    assert float((found[0, : len(wanted)] - other).abs().max()) > 1e-3


@pytest.mark.parametrize("shots", [("large", "box"), ("small",), ("middle", "small", "large")])
def test_graphs_compute_what_the_specification_says(network, shots):
    torch.manual_seed(len(shots))
    query, *features = torch.randn(1 + len(shots), 256, SIDE, SIDE)
    masks = [MASKS[name].astype(np.float32) for name in shots]
    guide = AsgnetGuide(network, SIZE)
    with torch.no_grad():
        guided = []
        for one, mask in zip(features, masks, strict=True):
            # A second way that the shot does not show, and no background.
            planes = torch.stack(
                [torch.zeros(SIZE, SIZE), torch.tensor(mask), torch.zeros(SIZE, SIZE)]
            )
            guided.append(guide(one[None], planes[None]))
        prototypes, real = (torch.stack(parts, dim=1) for parts in zip(*guided, strict=True))
        wanted = [slow_prototypes(*pair) for pair in zip(features, masks, strict=True)]
        for shot, one in enumerate(wanted):
            assert int(real[0, shot, 0].sum()) == len(one)
            assert float((prototypes[0, shot, 0, : len(one)] - one).abs().max()) < 1e-4
        assert float(real[0, :, 1].abs().max()) == 0
        padded = [
            torch.cat([tensor, torch.zeros_like(tensor[:, :1])], dim=1)
            for tensor in (prototypes, real, torch.ones(1, len(shots)))
        ]
        parts = AsgnetQuery(network, SIZE, BINS)(query[None])
        found = AsgnetDecode(network, SIZE, BINS)(*parts, *padded)[0, 0, 0]
        slow = slow_logits(network, query, torch.cat(wanted))
    margins = slow[1] - slow[0]
    assert float((found - margins).abs().max()) < 1e-4 * float(margins.abs().max())
