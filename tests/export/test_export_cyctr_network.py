"""CyCTR against its specification, written out the slow way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from export.methods.cyctr import sampling
from export.methods.cyctr.graphs import CyctrDecode, CyctrGuide, CyctrMerge
from export.methods.cyctr.network import CyctrNetwork
from export.methods.cyctr.sampling import Sampling, TokenLabels
from export.methods.trunks import Backbone

KEYS = Path(__file__).parents[1] / "parity" / "goldens" / "cyctr" / "keys.json"
SIZE, SIDE = 121, 16
CELLS = SIDE**2


@pytest.fixture(scope="module")
def network() -> CyctrNetwork:
    torch.manual_seed(1)
    return CyctrNetwork(Backbone.RESNET50).eval()


def test_the_state_dict_is_that_of_the_checkpoints(network):
    official = {key: shape for key, (shape, _) in json.loads(KEYS.read_text()).items()}
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == official


def blob(row: int, column: int, reach: float) -> Tensor:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return torch.tensor(np.hypot(rows - row, columns - column) < reach).float()


def test_small_groups_are_taken_whole_and_filled_from_the_other():
    cells, generator = 900, torch.Generator().manual_seed(3)
    labels = torch.zeros(3, 2, cells)
    for row, count in enumerate((50, 1700, 700)):
        labels[row].view(-1)[torch.randperm(1800, generator=generator)[:count]] = 1
    sample = Sampling(cells, 4, 0)(labels, torch.full((3,), 2.0))
    for row, objects in enumerate((50, 1100, 600)):
        drawn, flat = sample.cells[row], labels[row].flatten()
        assert bool(sample.present[row].all())
        assert len(drawn.unique()) == 1200
        assert bool((flat[drawn[:objects]] == 1).all())
        assert bool((flat[drawn[objects:]] == 0).all())
    # The label of a token that was drawn is that of the cell whose number it has in its group.
    members = labels[0].flatten().eq(0).nonzero()[:, 0]
    number = torch.searchsorted(members, sample.cells[0, 50:])
    assert torch.equal(sample.labels[0, 50:], labels[0].flatten()[number])
    assert bool((sample.labels[0, :50] == 1).all())


def test_tokens_may_keep_the_labels_of_their_own_cells(network, monkeypatch):
    monkeypatch.setattr(sampling, "GROUP", 40)
    generator = torch.Generator().manual_seed(4)
    support = torch.rand(1, 2, 256, SIDE, SIDE, generator=generator)
    prototypes = torch.rand(1, 2, 1, 256, generator=generator)
    labels = (torch.rand(1, 2, 1, CELLS, generator=generator) > 0.6).half()
    shots = (labels, torch.ones(1, 2, CELLS).half(), torch.ones(1, 2))
    found = {}
    with torch.no_grad():
        for kind in TokenLabels:
            merge = CyctrMerge(network, SIZE, 2, 0, kind)
            tokens, marks = merge(support, prototypes, torch.ones(1, 2, 1), *shots)
            found[kind] = tokens.flatten(0, 3), marks.flatten(0, 3)[:, 0]
        own = prototypes[0, :, 0, :, None, None].expand(-1, -1, SIDE, SIDE)
        merged = network.supp_merge_feat(torch.cat([support[0], own], dim=1))
    tokens, drawn = found[TokenLabels.OWN]
    # Which cell a token was made of shows in its values.
    all_cells = merged.flatten(2).transpose(1, 2).flatten(0, 1)
    apart = torch.cdist(tokens, all_cells, compute_mode="donot_use_mm_for_euclid_dist")
    cells = apart.argmin(dim=1)
    assert float(apart.amin(dim=1).max()) < 1e-4
    assert len(cells.unique()) == 160
    assert torch.equal(drawn, labels.float().flatten()[cells])
    by_number, looked_up = found[TokenLabels.BY_NUMBER]
    assert torch.equal(by_number, tokens)
    assert not torch.equal(looked_up, drawn)


def slow_positions(rows: int, columns: int) -> Tensor:
    """Codes [f * f, 256] of the cells, counted over the first rows and columns."""
    codes = torch.zeros(SIDE, SIDE, 256)
    for row in range(SIDE):
        for column in range(SIDE):
            y = min(row + 1, rows) / (rows + 1e-6) if column < columns else 0.0
            x = min(column + 1, columns) / (columns + 1e-6) if row < rows else 0.0
            for half, place in ((0, y), (128, x)):
                for wave in range(64):
                    angle = place * 2 * math.pi / 10000 ** (2 * wave / 128)
                    codes[row, column, half + 2 * wave] = math.sin(angle)
                    codes[row, column, half + 2 * wave + 1] = math.cos(angle)
    return codes.flatten(0, 1)


def slow_deformable(
    layer: torch.nn.Module, query: Tensor, placed: Tensor, values: Tensor
) -> Tensor:
    """Reads nine points by hand: each is mixed of the four cells around it."""
    offsets = layer.sampling_offsets(query + placed).view(CELLS, 8, 9, 2)
    shares = layer.attention_weights(query + placed).view(CELLS, 8, 9).softmax(dim=2)
    heads = layer.value_proj(values).view(SIDE, SIDE, 8, 32)
    cell = torch.arange(CELLS)
    x = (cell % SIDE).view(-1, 1, 1) + offsets[..., 0]
    y = (cell // SIDE).view(-1, 1, 1) + offsets[..., 1]
    mixed = torch.zeros(CELLS, 8, 32)
    head = torch.arange(8).view(1, 8, 1)
    for down in (0, 1):
        for right in (0, 1):
            row, column = y.floor().long() + down, x.floor().long() + right
            weight = (1 - (y - row).abs()) * (1 - (x - column).abs()) * shares
            inside = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
            read = heads[row.clamp(0, SIDE - 1), column.clamp(0, SIDE - 1), head]
            mixed += (read * (weight * inside)[..., None]).sum(dim=2)
    return layer.output_proj(mixed.flatten(1))


def slow_cross(layer: torch.nn.Module, query: Tensor, tokens: Tensor, labels, valid) -> Tensor:
    heads = []
    for head in range(8):
        part = slice(32 * head, 32 * head + 32)
        scores = layer.q_fc(query)[:, part] @ layer.k_fc(tokens)[:, part].T / math.sqrt(32)
        bias = torch.zeros(len(tokens))
        for token in range(len(tokens)):
            there = scores[:, token].argmax()
            back = scores[there].argmax()
            if labels[back] != labels[token] or not valid[token]:
                bias[token] = -10000
        heads.append((scores + bias).softmax(dim=1) @ layer.v_fc(tokens)[:, part])
    return layer.proj(torch.cat(heads, dim=1))


def test_graphs_compute_what_the_specification_says(network):
    torch.manual_seed(0)
    features = torch.randn(2, 256, SIDE, SIDE)
    high = functional.normalize(torch.rand(3, 2048, SIDE, SIDE), dim=1).half()
    query = torch.randn(256, SIDE, SIDE)
    masks = [blob(40, 50, 30), blob(60, 30, 20)]
    extents = torch.tensor([[120.0, 80.0], [120.0, 120.0]])
    merge_weight = network.qry_merge_feat[0].weight
    with torch.no_grad():
        part = functional.conv2d(query[None], merge_weight[:, :256])
        guide = CyctrGuide(SIZE)
        guided = []
        for shot, mask in enumerate(masks):
            planes = torch.stack([torch.zeros_like(mask), mask, torch.zeros_like(mask)])
            inputs = (features[shot, None], high[shot, None], planes[None], extents[shot, None])
            guided.append(guide(*inputs))
        prototypes, _, weights, labels, valid = zip(*guided, strict=True)
        most = max(shot[1].shape[2] for shot in guided)
        positions = torch.stack(
            [functional.pad(shot[1], (0, 0, 0, most - shot[1].shape[2])) for shot in guided], dim=1
        )
        stacks = [torch.stack(each, dim=1) for each in (prototypes, weights, labels, valid)]
        padded = [torch.cat([one, torch.zeros_like(one[:, :1])], dim=1) for one in stacks]
        supports = torch.cat([features, torch.zeros_like(features[:1])])[None]
        validity = torch.tensor([[1.0, 1.0, 0.0]])
        merge = CyctrMerge(network, SIZE, 10, 0)
        tokens, marks = merge(supports, *padded, validity)
        extent = torch.tensor([[90.0, 120.0]])
        found = CyctrDecode(network, SIZE)(
            part,
            high[2:],
            torch.stack(prototypes).mean(dim=0),
            functional.pad(positions, (0, 0, 0, 0, 0, 0, 0, 1)),
            padded[1],
            tokens,
            marks,
            validity,
            extent,
        )[0, 0, 0]
        wanted = slow_margins(network, features, high, query, masks)
    assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())


def slow_margins(network, features, high, query, masks) -> Tensor:
    """Margins [f, f] by sections 1 to 3, for the extents of the test; every cell is a token."""
    means, tokens, labels, valid, priors = [], [], [], [], []
    columns = [11, 16]
    for shot, mask in enumerate(masks):
        soft = functional.interpolate(
            mask[None, None], size=(SIDE, SIDE), mode="bilinear", align_corners=True
        )[0, 0]
        mean = (features[shot] * soft).sum(dim=(1, 2)) / (soft.sum() + 0.0005)
        means.append(mean)
        both = torch.cat([features[shot], mean[:, None, None].expand(-1, SIDE, SIDE)])
        tokens.append(network.supp_merge_feat(both[None])[0].flatten(1).T)
        hard = functional.interpolate(mask[None, None], size=(SIDE, SIDE), mode="nearest")[0, 0]
        labels.append(hard.flatten())
        valid.append((torch.arange(CELLS) % SIDE) < columns[shot])
        cosines = functional.cosine_similarity(
            (high[shot].float() * soft).flatten(1)[:, :, None],
            high[2].float().flatten(1)[:, None],
            dim=0,
        )
        best = cosines.amax(dim=0)
        priors.append((best - best.min()) / (best.max() - best.min() + 1e-7))
    prototype = torch.stack(means).mean(dim=0)[:, None, None].expand(-1, SIDE, SIDE)
    prior = torch.stack(priors).mean(dim=0).view(1, SIDE, SIDE)
    cells = network.qry_merge_feat(torch.cat([query, prototype, prior])[None])[0].flatten(1).T
    parts = network.transformer
    covered = (torch.arange(CELLS) // SIDE < 12).float()[:, None]
    placed = slow_positions(12, 16) + parts.level_embed
    seen = (torch.cat(tokens), torch.cat(labels), torch.cat(valid))
    for number in (0, 1):
        norms, ffns = parts.layer_norms[4 * number :], parts.ffns[2 * number :]
        read = slow_deformable(parts.qry_self_layers[number], cells, placed, cells * covered)
        cells = norms[1](ffns[0](norms[0](cells + read)))
        cells = norms[2](cells + slow_cross(parts.cross_layers[number], cells, *seen))
        cells = norms[3](ffns[1](cells))
    maps = network.merge_multi_lvl_reduce(cells.T.reshape(1, 256, SIDE, SIDE))
    logits = network.cls(network.merge_multi_lvl_sum(maps) + maps)[0]
    return logits[1] - logits[0]
