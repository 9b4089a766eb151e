"""PFENet: its checkpoints, and its parts against a straightforward computation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from export.errors import CheckpointError, ExportError
from export.letterboxed import position_buckets
from export.methods.enrichment import CHANNELS, Enrichment, pooling_matrix, scale_sides
from export.methods.pfenet import (
    Masking,
    PfenetDecode,
    PfenetNetwork,
    PfenetQuery,
    PfenetWholeFeatures,
    PfenetWholeGuide,
)
from export.methods.prior import prior_maps, stored_positions, unit
from export.methods.trunks import Backbone
from export.pfenet_family import SHARES, parse_bins, pfenet_checkpoint, pfenet_family

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "pfenet"
SIDE = 129
GRID = 9


@pytest.fixture(scope="module")
def network() -> PfenetNetwork:
    torch.manual_seed(0)
    return PfenetNetwork(Backbone.VGG16).eval()


def tiny_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The official layout, in a file of next to no size."""
    return {
        f"module.{key}": torch.ones((), dtype=value.dtype).expand(value.shape)
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("backbone", Backbone)
def test_the_state_dict_is_that_of_official_checkpoints(backbone, tmp_path):
    official = json.loads((GOLDENS / "keys.json").read_text())[backbone]
    with torch.device("meta"):
        network = PfenetNetwork(backbone)
    own = {f"module.{key}": list(value.shape) for key, value in network.state_dict().items()}
    assert own == {key: entry[0] for key, entry in official.items()}


@pytest.mark.parametrize("backbone", [Backbone.RESNET50, Backbone.VGG16])
def test_a_file_of_official_training_tells_its_trunk(backbone, tmp_path):
    with torch.device("meta"):
        state = tiny_state(PfenetNetwork(backbone))
    state = {key: torch.ones((), dtype=one.dtype).expand(one.shape) for key, one in state.items()}
    path = tmp_path / "train_epoch_200.pth"
    torch.save({"epoch": 200, "state_dict": state, "optimizer": {"state": {}}}, path)
    read = pfenet_checkpoint(path)
    assert read.backbone is backbone
    assert not read.training
    assert float(read.layer1[0].state_dict().popitem()[1].flatten()[0]) == 1


def test_files_of_other_networks_are_named(network, tmp_path):
    path = tmp_path / "train_epoch_200.pth"
    state = tiny_state(network)
    torch.save({**state, "module.supp_init_merge.0.0.weight": torch.ones(1)}, path)
    with pytest.raises(
        CheckpointError, match="looks like an SCL checkpoint of PFENet, not a PFENet"
    ):
        pfenet_checkpoint(path)
    del state["module.res1.0.weight"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"1 keys are missing, the first is res1\.0"):
        pfenet_checkpoint(path)
    torch.save({key: value.half() for key, value in tiny_state(network).items()}, path)
    with pytest.raises(CheckpointError, match="half precision"):
        pfenet_checkpoint(path)


@pytest.mark.parametrize(
    ("backbone", "side"),
    [(Backbone.RESNET50, 113), (Backbone.VGG16, 129), (Backbone.VGG16, 105), (Backbone.VGG16, 57)],
)
def test_the_grid_is_the_one_that_the_stages_make(backbone, side):
    with torch.device("meta"):
        network = PfenetNetwork(backbone)
        finer, coarser = network.middle(torch.zeros(1, 3, side, side))
    assert finer.shape[2:] == coarser.shape[2:] == (network.grid(side),) * 2


@pytest.mark.parametrize(("source", "target"), [(60, 30), (60, 8), (15, 60), (17, 4), (9, 1)])
def test_pooling_is_torchs_adaptive_one(source, target):
    maps = torch.rand(1, 2, source, source)
    matrix = pooling_matrix(source, target)
    wanted = nn.functional.adaptive_avg_pool2d(maps, target)
    torch.testing.assert_close(matrix @ maps @ matrix.T, wanted, rtol=1e-5, atol=1e-6)


def resize(maps: torch.Tensor, side: int) -> torch.Tensor:
    return nn.functional.interpolate(maps, size=(side, side), mode="bilinear", align_corners=True)


def official_logits(network, query, prototype, prior, bins):
    """Steps 5 and 6 of the specification, in its own order."""
    side = query.shape[2]
    results = []
    for scale, length in enumerate(scale_sides(side, bins)):
        pooled = nn.functional.adaptive_avg_pool2d(query, length)
        tiled = prototype[:, :, None, None].expand(-1, -1, length, length)
        maps = network.init_merge[scale](torch.cat([pooled, tiled, resize(prior, length)], 1))
        if scale:
            seen = resize(results[-1], length)
            maps = network.alpha_conv[scale - 1](torch.cat([maps, seen], 1)) + maps
        maps = network.beta_conv[scale](maps) + maps
        results.append(resize(maps, side))
    maps = network.res1(torch.cat(results, 1))
    return network.cls(network.res2(maps) + maps)


def official_prior(high, support, mask):
    """Step 3 of the specification for one shot: maps [1, C, f, f], mask [1, 1, f, f]."""
    masked = (support * mask).flatten(2)[0]
    query = high.flatten(2)[0]
    lengths = masked.norm(dim=0)[:, None] * query.norm(dim=0)[None] + 1e-7
    nearest = (masked.T @ query / lengths).amax(dim=0)
    spread = nearest.max() - nearest.min()
    return ((nearest - nearest.min()) / (spread + 1e-7)).reshape(high.shape[2:])


def random_episode(shots: int, ways: int) -> tuple[torch.Tensor, ...]:
    """High maps of query and shots, masks of which shot 1 lacks way 0."""
    torch.manual_seed(4)
    high, supports = torch.rand(1, 24, GRID, GRID), torch.rand(shots, 24, GRID, GRID)
    masks = (torch.rand(shots, ways, GRID, GRID) > 0.7).float()
    masks[1, 0] = 0
    return high, supports, masks


def positions_of(supports, masks):
    """Stored positions [1, shots, K, N, C] of shots, each computed by itself."""
    stored = [
        stored_positions(maps[None, None].expand(1, len(mask), -1, -1, -1), mask[None])
        for maps, mask in zip(supports, masks, strict=True)
    ]
    most = max(one.shape[2] for one in stored)
    return torch.stack(
        [nn.functional.pad(one, (0, 0, 0, most + 3 - one.shape[2])) for one in stored], dim=1
    )


def test_priors_from_stored_positions_are_those_of_whole_maps():
    high, supports, masks = random_episode(shots=3, ways=2)
    positions = positions_of(supports, masks)
    assert positions.dtype == torch.float16
    maps = prior_maps(positions, unit(high, 1))
    for shot in range(3):
        for way in range(2):
            wanted = official_prior(high, supports[shot : shot + 1], masks[shot, way][None, None])
            torch.testing.assert_close(maps[0, shot, way], wanted, rtol=0, atol=2e-3)
    assert not maps[0, 1, 0].any()


def test_only_the_foreground_is_stored_and_small():
    """A tenth of 60 x 60 cells: an object on an input of 473."""
    maps, cells = torch.rand(1, 1, 2048, 60, 60), torch.zeros(1, 1, 60, 60)
    cells[0, 0, 10:30, 20:38] = 1
    positions = stored_positions(maps, cells)
    assert positions.shape == (1, 1, 360, 2048)
    wanted = unit(maps[0, 0, :, 10:30, 20:38].flatten(1).T, 1)
    torch.testing.assert_close(positions[0, 0].float(), wanted, rtol=1e-3, atol=1e-5)
    kept = positions.numel() * positions.element_size()
    sent = next(one for one in position_buckets(3600) if one >= 360) * 2048 * 2
    assert kept <= sent <= 2_000_000


@pytest.mark.parametrize("bins", [(60, 30, 15, 8), SHARES], ids=["sides", "shares"])
def test_decode_is_the_official_enrichment_of_each_way(network, bins):
    shots, ways = 3, 2
    high, supports, masks = random_episode(shots, ways)
    query, prototypes = torch.rand(1, CHANNELS, GRID, GRID), torch.rand(1, ways, CHANNELS)
    weights = (masks.amax(dim=(2, 3)) > 0).float()[None]
    positions = positions_of(supports, masks)
    # A padded shot, and a padded bucket of positions.
    positions = nn.functional.pad(positions, (0, 0, 0, 5, 0, 0, 0, 1))
    weights = nn.functional.pad(weights, (0, 0, 0, 1), value=1.0)
    validity = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    part = query_part(network, query, bins)
    decode = PfenetDecode(network, SIDE, bins)
    with torch.no_grad():
        logits = decode(unit(high, 1), part, prototypes, positions, weights, validity)
        for way, shown in ((0, (0, 2)), (1, (0, 1, 2))):
            priors = [
                official_prior(high, supports[shot : shot + 1], masks[shot, way][None, None])
                for shot in shown
            ]
            prior = torch.stack(priors).mean(dim=0)[None, None]
            wanted = official_logits(network, query, prototypes[:, way], prior, bins)
            margins = wanted[:, 1] - wanted[:, 0]
            error = (logits[:, way, 0] - margins).abs().max() / wanted.abs().max()
            assert error < 2e-3  # the positions are float16


def query_part(network, query, bins):
    """What `query_features` says of the query, without its layer4."""
    module = PfenetQuery(network, SIDE, bins)
    module.layer4 = nn.Identity()
    layer3 = torch.zeros(1, 512, GRID, GRID)
    with torch.no_grad():
        return module(torch.cat([layer3, torch.zeros_like(query), query], 1))[1]


def test_masks_may_fall_on_the_output_of_layer4_alone(network):
    """Two shots, one way; of images in bytes, whose normalisation is written out."""
    torch.manual_seed(6)
    photographs = torch.randint(0, 256, (3, SIDE, SIDE, 3))
    masks = torch.zeros(2, SIDE, SIDE)
    masks[0, 20:90, 30:100], masks[1, 50:120, 10:60] = 1, 1
    bins = (9, 4, 2, 1)
    features = PfenetWholeFeatures(network, SIDE, bins)
    guide, decode = PfenetWholeGuide(network, SIDE), PfenetDecode(network, SIDE, bins)
    with torch.no_grad():
        support, high, query = features((photographs * 256).to(torch.uint16))
        planes = torch.stack([1 - masks, masks], dim=1)
        # Alone, as a batch pads to the shot that stores most.
        shots = [guide(support[[shot]], high[[shot]], planes[[shot]]) for shot in range(2)]
        most = max(positions.shape[2] for _, positions, _ in shots)
        positions = torch.stack(
            [nn.functional.pad(one, (0, 0, 0, most - one.shape[2])) for _, one, _ in shots], dim=1
        )
        prototypes = torch.stack([one for one, _, _ in shots]).mean(dim=0)
        given = prototypes, positions, torch.ones(1, 2, 1), torch.ones(1, 2)
        found = decode(high[2:], query[2:], *given)[0, 0, 0]

        mean, spread = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        images = ((photographs / 255 - mean) / spread).permute(0, 3, 1, 2)
        finer = network.layer2(network.layer1(network.layer0(images)))
        coarser = network.layer3(finer)
        last = network.layer4(coarser)
        both = torch.cat([coarser, resize(finer, GRID)], dim=1)
        priors, means = [], []
        for shot in range(2):
            cells = resize(masks[shot][None, None], GRID)
            pooled = network.down_supp(both[[shot]])
            means.append((pooled * cells).sum(dim=(2, 3)) / (cells.sum() + 0.0005))
            priors.append(official_prior(last[2:], last[[shot]], cells))
            masked = network.layer4(coarser[[shot]] * cells)
            other = official_prior(last[2:], masked, cells)
            # Units are kept in half precision; random weights spread cosines by next to nothing.
            seen = prior_maps(positions[:, [shot]], high[2:].float())[0, 0, 0]
            torch.testing.assert_close(seen, priors[-1], rtol=0, atol=4e-3)
            assert float((seen - other).abs().max()) > 1e-2
        prior = torch.stack(priors).mean(dim=0)[None, None]
        prototype = torch.stack(means).mean(dim=0)
        wanted = official_logits(network, network.down_query(both[2:]), prototype, prior, bins)[0]
    margins = wanted[1] - wanted[0]
    assert float((found - margins).abs().max()) < 2e-3 * float(wanted.abs().max())


def test_enrichment_may_take_the_finer_results_of_another_pass(network):
    enrichment = Enrichment(network, GRID, SHARES)
    with torch.no_grad():
        entries = [torch.randn(1, CHANNELS, side, side) for side in enrichment.sides]
        alone = enrichment.levels(entries)
        same = enrichment.levels(entries, finer=alone[:-1])
        other = enrichment.levels(entries, finer=[torch.zeros_like(one) for one in alone[:-1]])
    for one, two in zip(alone, same, strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(alone[0], other[0])
    assert not torch.equal(alone[1], other[1])


def test_sizes_and_scales_that_do_not_fit_are_refused(network):
    def family(size, bins=SHARES, **options):
        shape = (size, size)
        return pfenet_family(
            alias="pfenet", network=network, size=shape, bins=bins, provenance={}, **options
        )

    families = family(129), family(129, bins=(9, 4, 2, 1)), family(129, masking=Masking.OUTPUT)
    assert len({one.name for one in families}) == 3
    with pytest.raises(ExportError, match="one more than a multiple of 8"):
        family(128)
    with pytest.raises(ExportError, match="too small for the scales"):
        family(65)
    assert parse_bins("60,30,15,8") == (60, 30, 15, 8)
    for wrong in ("60,30", "60,30,15,a", "60,30,15,0"):
        with pytest.raises(ExportError, match="no list of scales"):
            parse_bins(wrong)
