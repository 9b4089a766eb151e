# SPDX-License-Identifier: Apache-2.0
"""HSNet: its checkpoints, its 4-D convolutions, and what its graphs make of ways and shots."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from export.errors import CheckpointError, ExportError
from export.graphs import export_graph
from export.hsnet_family import hsnet_checkpoint, hsnet_family
from export.methods.hsnet.graphs import (
    NO_SHOT,
    TRUNKS,
    HsnetDecode,
    HsnetGuide,
    HsnetNetwork,
    Level,
)
from export.methods.hsnet.squeeze import CenterPivot, GroupNorm4d, HpnLearner
from export.methods.hsnet.trunks import ResNetTaps

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "hsnet"
LEVELS = (Level(2, 8, 6, 6), Level(1, 8, 3, 3), Level(1, 8, 2, 2))


def official(backbone: str) -> dict[str, tuple[list[int], str]]:
    keys = json.loads((GOLDENS / "keys.json").read_text())[backbone]
    return {f"module.{key}": (shape, dtype) for key, (shape, dtype) in keys.items()}


def tiny_state(backbone: str) -> dict[str, torch.Tensor]:
    """The official layout, in a file of next to no size."""
    return {
        key: torch.ones((), dtype=getattr(torch, dtype)).expand(shape)
        for key, (shape, dtype) in official(backbone).items()
    }


@pytest.mark.parametrize("backbone", TRUNKS)
def test_official_checkpoints_are_read_and_tell_their_trunk(backbone, tmp_path):
    torch.save(tiny_state(backbone), tmp_path / "best_model.pt")
    network = hsnet_checkpoint(tmp_path / "best_model.pt")
    assert not network.training
    own = {f"module.{key}": list(value.shape) for key, value in network.state_dict().items()}
    assert own == {key: shape for key, (shape, _) in official(backbone).items()}


def test_files_of_other_networks_are_named(tmp_path):
    path = tmp_path / "best_model.pt"
    torch.save(
        {"module.layer55.0.bias": torch.ones(1), "module.residule1.1.weight": torch.ones(1)}, path
    )
    with pytest.raises(CheckpointError, match="looks like a CANet checkpoint, not an HSNet"):
        hsnet_checkpoint(path)
    state = tiny_state("resnet50")
    torch.save({key: value.half() for key, value in state.items()}, path)
    with pytest.raises(CheckpointError, match="half precision"):
        hsnet_checkpoint(path)
    del state["module.hpn_learner.decoder2.2.bias"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"the first is hpn_learner\.decoder2\.2\.bias"):
        hsnet_checkpoint(path)


@pytest.mark.parametrize(
    ("backbone", "size", "told"),
    [
        ("vgg16", (264, 264), "do not come to equal sizes"),
        ("vgg16", (400, 320), "square"),
        ("resnet50", (16, 16), "between 32 and 2048"),
    ],
)
def test_sizes_that_the_head_does_not_take_are_refused(backbone, size, told):
    with torch.device("meta"):
        network = HsnetNetwork(TRUNKS[backbone]())
    if "equal" in told:
        network.backbone.features.to_empty(device="cpu")
    with pytest.raises(ExportError, match=told):
        hsnet_family(alias="hsnet", network=network, size=size, provenance={})


def test_a_center_pivot_convolution_is_two_convolutions_over_two_axes_each():
    torch.manual_seed(0)
    layer = CenterPivot(2, 3, 3, 2)
    maps = torch.randn(4, 5, 2, 6, 7)
    with torch.no_grad():
        found = layer(maps)
        assert found.shape == (4, 5, 3, 3, 4)
        for row, column in ((0, 0), (1, 3), (2, 1)):
            over_query = layer.conv1(maps[..., 2 * row, 2 * column].permute(2, 0, 1)[None])[0]
            for i, j in ((0, 0), (3, 4), (2, 1)):
                over_support = layer.conv2(maps[i, j][None])[0]
                wanted = over_query[:, i, j] + over_support[:, row, column]
                torch.testing.assert_close(found[i, j, :, row, column], wanted)


def test_groups_are_normalised_over_all_four_axes():
    torch.manual_seed(1)
    layer, maps = GroupNorm4d(8), 3 * torch.randn(3, 4, 8, 5, 2) + 1
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
        wanted = torch.nn.functional.group_norm(
            maps.permute(2, 0, 1, 3, 4)[None], 4, layer.weight, layer.bias
        )[0].permute(1, 2, 0, 3, 4)
        torch.testing.assert_close(layer(maps), wanted, rtol=1e-4, atol=1e-5)


def rows_of(taps: torch.Tensor) -> torch.Tensor:
    """Taps [taps, C, h, w] as the `features` graph hands them on."""
    vectors = taps.flatten(2).permute(2, 0, 1)
    lengths = vectors.norm(dim=2)
    units = vectors / (lengths[:, :, None] + 1e-5)
    return torch.cat([units.flatten(1), lengths], dim=1).half()[None]


def test_vectors_are_masked_before_they_are_made_unit_vectors():
    """Section 4 of the specification: a cell that the mask just touches counts almost in full."""
    torch.manual_seed(2)
    taps = [
        1e-3 * torch.randn(level.taps, level.channels, level.rows, level.columns)
        for level in LEVELS
    ]
    planes = torch.zeros(1, 3, 48, 40)
    planes[0, 1, 10:30, 5:22] = 1
    guide = HsnetGuide((48, 40), LEVELS)
    *picked, shown = guide(*map(rows_of, taps), planes)
    assert shown.tolist() == [[1, 0]]
    for level, tap, stored, places in zip(LEVELS, taps, picked[:3], picked[3:], strict=True):
        soft = torch.nn.functional.interpolate(
            planes[:, 1:2], size=(level.rows, level.columns), mode="bilinear", align_corners=True
        )[0]
        features = tap * soft
        wanted = features / (features.norm(dim=1, keepdim=True) + 1e-5)
        wanted = wanted.flatten(2).permute(2, 0, 1).flatten(1)
        cells = places[0, 0].long()
        found = torch.where(cells[:, None] < 0, 0, stored[0, 0, cells].float())
        torch.testing.assert_close(found, wanted, rtol=3e-3, atol=1e-3)
        covered = max(1, int((soft > 0).sum()))
        assert stored.shape[2] == covered, "no more is stored than the mask covers"
        assert (places[0, 1] == -1).all()
        assert not stored[0, 1].any()


@pytest.fixture(scope="module")
def decode() -> HsnetDecode:
    torch.manual_seed(3)
    return HsnetDecode(SimpleNamespace(hpn_learner=HpnLearner((2, 1, 1))), LEVELS).eval()


def query_rows(batch: int) -> list[torch.Tensor]:
    return [
        torch.nn.functional.normalize(
            torch.randn(batch, level.cells, level.width + level.taps)
        ).half()
        for level in LEVELS
    ]


def stacked(batch: int, shots: int, ways: int) -> list[torch.Tensor]:
    """Three stored positions of each level, of which every cell is one or none."""
    positions = [torch.randn(batch, shots, ways, 3, level.width).half() / 3 for level in LEVELS]
    places = [torch.randint(-1, 3, (batch, shots, ways, level.cells)).float() for level in LEVELS]
    return [*positions, *places]


def test_every_shot_and_way_is_a_run_of_its_own(decode):
    torch.manual_seed(4)
    maps, guidance = query_rows(2), stacked(2, 3, 2)
    shown, validity = torch.ones(2, 3, 2), torch.ones(2, 3)
    shown[1, 0, 1] = 0
    validity[0, 2] = 0
    with torch.no_grad():
        logits = decode(*maps, *guidance, shown, validity)
        assert logits.shape == (2, 2, 3, 12, 12)
        for query, way, shot in np.ndindex(2, 2, 3):
            if not shown[query, shot, way] * validity[query, shot]:
                assert (logits[query, way, shot] == NO_SHOT).all()
                continue
            alone = decode(
                *(rows[query, None] for rows in maps),
                *(rows[query, None, shot, None, way, None] for rows in guidance),
                torch.ones(1, 1, 1),
                torch.ones(1, 1),
            )
            torch.testing.assert_close(logits[query, way, shot], alone[0, 0, 0])


def test_the_body_of_the_loop_over_shots_does_not_tell_of_its_exporter():
    torch.manual_seed(0)
    network = HsnetNetwork(ResNetTaps((1, 1, 1, 1))).eval()
    family = hsnet_family(alias="hsnet", network=network, size=(64, 64), provenance={})
    (decode,) = (graph for graph in family.graphs if graph.role == "decode")
    assert b"site-packages" not in export_graph(decode)
