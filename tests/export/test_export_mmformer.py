# SPDX-License-Identifier: Apache-2.0
"""MM-Former: its checkpoints, and its matching against the specification."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d, cosine_similarity, interpolate

from export.errors import CheckpointError, ExportError
from export.methods.deformable import DeformableAttention
from export.methods.mmformer.graphs import (
    AveragedVectors,
    MmformerDecode,
    MmformerGuide,
    grids_of,
)
from export.methods.mmformer.matching import self_aligned, source_grid
from export.methods.mmformer.network import MmformerNetwork, Variant
from export.methods.mmformer.parts import grid_positions
from export.mmformer_family import mmformer_family
from export.mmformer_source import mmformer_checkpoint

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "mmformer"
SIZE = (96, 160)


def official(model: str) -> dict[str, torch.Tensor]:
    """The official layout, in a file of next to no size."""
    keys = json.loads((GOLDENS / "keys.json").read_text())[model]
    return {
        key: torch.ones((), dtype=getattr(torch, dtype)).expand(shape)
        for key, (shape, dtype) in keys.items()
    }


def small_network() -> MmformerNetwork:
    """The paper's network with fewer layers of each kind, which exports in no time."""
    torch.manual_seed(0)
    network = MmformerNetwork(Variant.V1).eval()
    for number in range(2, 6):
        stage = network.backbone.get_submodule(f"res{number}")
        setattr(network.backbone, f"res{number}", stage[:1])
    encoder = network.sem_seg_head.pixel_decoder.transformer.encoder
    encoder.layers = encoder.layers[:1]
    decoder = network.sem_seg_head.predictor
    for kind in ("self_attention", "cross_attention", "ffn"):
        name = f"transformer_{kind}_layers"
        setattr(decoder, name, getattr(decoder, name)[:2])
    return network


@pytest.fixture(scope="module")
def network() -> MmformerNetwork:
    return small_network()


@pytest.mark.parametrize(
    ("model", "asked", "variant"),
    [
        ("v1", None, Variant.V1),
        ("v2_and_v2svf", None, Variant.V2),
        ("v2_and_v2svf", Variant.V2SVF, Variant.V2SVF),
    ],
)
def test_official_checkpoints_are_read_and_tell_their_network(model, asked, variant, tmp_path):
    path = tmp_path / "model_best.pth"
    torch.save({"model": official(model), "optimizer": {}, "iteration": 1}, path)
    network = mmformer_checkpoint(path, asked)
    assert network.variant is variant
    assert not network.training


def test_factored_convolutions_are_multiplied(tmp_path):
    state = official("v2_and_v2svf")
    names = ("conv_U.weight", "vector_S", "conv_V.weight")
    factors = [torch.randn(state[f"layer0.0.{name}"].shape) for name in names]
    state |= {f"layer0.0.{name}": value for name, value in zip(names, factors, strict=True)}
    torch.save({"model": state}, tmp_path / "model_best.pth")
    folded = mmformer_checkpoint(tmp_path / "model_best.pth").backbone.layer0[0]
    images, (left, scales, right) = torch.randn(1, 3, 9, 9), factors
    wanted = conv2d(conv2d(images, right, stride=2, padding=1) * scales, left)
    torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)


def test_files_that_cannot_be_exported_say_what_they_are(tmp_path):
    path, state = tmp_path / "model_best.pth", official("v1")

    def refused(tensors: dict[str, torch.Tensor], message: str, variant=None) -> None:
        torch.save({"model": tensors}, path)
        with pytest.raises(CheckpointError, match=message):
            mmformer_checkpoint(path, variant)

    matching = ("crossat_", "conv_", "fc1.", "fc2.")
    first = {key: value for key, value in state.items() if not key.startswith(matching)}
    refused(first, "first training step")
    refused(state, "the paper's network, v1, not v2svf", Variant.V2SVF)
    refused(official("v2_and_v2svf"), "the later network, v2 or v2svf, not v1", Variant.V1)
    refused({**state, "crossat_9.norm.weight": torch.ones(1)}, r"belong, the first is crossat_9\.")
    refused({key: value for key, value in state.items() if key != "fc2.bias"}, r"first is fc2\.")
    refused({key: value.half() for key, value in state.items()}, "half precision")
    refused({"netB.0.weight": torch.ones(1)}, "looks like an SG-One checkpoint")


def test_only_sizes_that_need_no_padding_are_exported(network):
    with pytest.raises(ExportError, match="multiples of 32"):
        mmformer_family(alias="m", network=network, size=(480, 470), provenance={})


@pytest.mark.parametrize(
    ("grid", "small"),
    [((15, 15), (15, 15)), ((60, 60), (15, 15)), ((15, 40), (15, 40)), ((20, 16), (18, 15)),
     ((8, 10), (15, 18))],
)  # fmt: skip
def test_the_shorter_side_of_what_is_looked_at_is_15(grid, small):
    assert source_grid(grid) == small


def test_self_alignment_gates_channels():
    maps = torch.randn(1, 5, 2, 3)
    shares = torch.softmax(maps[0].mean(dim=0).flatten(), dim=0)
    for channel in range(5):
        gate = torch.sigmoid((maps[0, channel].flatten() * shares).sum())
        torch.testing.assert_close(self_aligned(maps)[0, channel], maps[0, channel] * gate)


def test_deformable_attention_without_offsets_reads_each_token_from_every_map():
    """With no offsets and equal shares, a token is the mean of three maps at its own place."""
    module = DeformableAttention(256, levels=3, points=4)
    for layer in (module.sampling_offsets, module.attention_weights):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    grids = ((2, 2), (4, 4), (4, 4))
    tokens = torch.randn(1, 36, 256)
    centres = torch.rand(36, 2)
    values = module.value_proj(tokens)[0]
    maps = [part.T.reshape(1, 256, *grid) for part, grid in
            zip(values.split([4, 16, 16]), grids, strict=True)]  # fmt: skip
    places = (2 * centres - 1)[None, None]
    read = [
        torch.nn.functional.grid_sample(values, places, align_corners=False)[0, :, 0].T
        for values in maps
    ]
    wanted = module.output_proj(torch.stack(read).mean(dim=0))
    found = module(torch.randn(1, 36, 256), tokens, centres, grids)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def official_alignment(weights, tokens, positions, sources, source_positions):
    """Section 6, step 5, with torch's own attention."""
    pairs = zip(
        weights.transformer_cross_attention_layers, weights.transformer_ffn_layers, strict=True
    )
    for cross, feed_forward in pairs:
        attention = torch.nn.MultiheadAttention(256, 4, batch_first=True)
        attention.load_state_dict(cross.multihead_attn.state_dict())
        seen, _ = attention(tokens + positions, sources + source_positions, sources)
        tokens = cross.norm(tokens + seen)
        inner = torch.relu(feed_forward.linear1(tokens))
        tokens = feed_forward.norm(tokens + feed_forward.linear2(inner))
    return tokens


def official_vectors(network, query_maps, support_maps, mask, proposals):
    """Steps 4 to 6 of the specification for one shot: P_S [768] and P_Q [100, 768]."""
    objects, proposed = [], []

    def flat(maps):
        return maps.flatten(2).transpose(1, 2)

    for level, (ours, theirs) in enumerate(zip(query_maps, support_maps, strict=True)):
        grid = ours.shape[2:]
        soft = interpolate(mask, grid, mode="bilinear", align_corners=False)
        weights = interpolate(mask, grid, mode="bilinear", align_corners=True).flatten()
        places = grid_positions(tuple(grid)).T.reshape(1, 256, *grid)
        masked, masked_places = theirs * soft, places * soft
        if 15 in grid:
            small = [ours, places, masked, masked_places]
        else:
            short = 15 / min(grid)
            target = [15 if side == min(grid) else int(side * short) for side in grid]
            small = [
                interpolate(maps, target, mode="bilinear", align_corners=False)
                for maps in (ours, places, masked, masked_places)
            ]
        own, own_places, other, other_places = map(flat, small)
        alignment = network.alignment(level)
        query_side = official_alignment(alignment, flat(ours), flat(places), other, other_places)
        support_side = official_alignment(
            alignment, flat(masked), flat(masked_places), own, own_places
        )
        objects.append((support_side[0] * weights[:, None]).sum(dim=0) / (weights.sum() + 1e-7))
        shares = interpolate(proposals, grid, mode="bilinear", align_corners=True)[0].flatten(1)
        proposed.append(shares @ query_side[0] / shares.sum(dim=1, keepdim=True))
    return torch.cat(objects), torch.cat(proposed, dim=1)


def stacked_shots(values):
    """Shots along a new axis, those that store fewer cells padded with zeros."""
    most = [max(lengths) for lengths in zip(*(value.shape for value in values), strict=True)]
    together = torch.zeros(values[0].shape[0], len(values), *most[1:])
    for shot, value in enumerate(values):
        together[(slice(None), shot, *(slice(length) for length in value.shape[1:]))] = value
    return together


@pytest.mark.parametrize("merge", AveragedVectors)
def test_ways_and_shots_are_matched_as_the_specification_says(network, merge):
    """Two ways, three shots: one that is padded, and one that does not show the second way."""
    grids = grids_of(network, SIZE)
    torch.manual_seed(1)
    maps = [[torch.randn(1, 256, *grid) for grid in grids.matching] for _ in range(4)]
    planes = torch.zeros(3, 1, 3, *SIZE)
    planes[0, 0, 1, 10:60, 20:90] = 1
    planes[0, 0, 2, 60:90, 100:150] = 1
    planes[1, 0, 1, 5:50, 70:140] = 1
    planes[2] = 1
    proposals = torch.rand(1, 100, *grids.finest)
    guide, decode = MmformerGuide(grids), MmformerDecode(network, grids, merge)
    tokens = [values.flatten(2).transpose(1, 2) for values in maps[3]]
    with torch.no_grad():
        shots = [guide(*maps[shot], planes[shot]) for shot in range(3)]
        stacked = [stacked_shots(values) for values in zip(*shots, strict=True)]
        validity = torch.tensor([[1.0, 1.0, 0.0]])
        inputs = (*tokens, proposals, *stacked, validity)
        similarities, logits = decode.similarities(*inputs), decode(*inputs)
        for way, showing in ((0, (0, 1)), (1, (0,))):
            objects, proposed = zip(
                *(
                    official_vectors(
                        network, maps[3], maps[shot], planes[shot][:, 1 + way, None], proposals
                    )
                    for shot in showing
                ),
                strict=True,
            )
            mean = torch.stack(objects).mean(dim=0)[None]
            compared = proposed
            if merge is AveragedVectors.BOTH:
                compared = [torch.stack(proposed).mean(dim=0)]
            each = [cosine_similarity(mean, vectors, dim=1) for vectors in compared]
            wanted = torch.stack(each).mean(dim=0)
            # Guidance is kept in float16.
            torch.testing.assert_close(similarities[0, way], wanted, rtol=0, atol=5e-5)
            weights = network.fc2(torch.relu(network.fc1(wanted)))
            score = (weights[:, None, None] * proposals[0]).sum(dim=0)
            torch.testing.assert_close(logits[0, way, 0], 2 * score - 1, rtol=0, atol=1e-3)


def test_variants_and_settings_have_names_of_their_own(network):
    names = {
        mmformer_family(alias="m", network=network, size=size, provenance={}, merge=merge).name
        for size in ((64, 64), (96, 64))
        for merge in AveragedVectors
    }
    assert len(names) == 4
