from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from export.errors import CheckpointError, ExportError
from export.goldens import read_model_keys
from export.methods.revolver import (
    AnnotatedCells,
    AnnotatingDecode,
    AnnotatingGuide,
    GuidedDecode,
    GuidedFeatures,
    GuidedModel,
    GuidedNetwork,
    GuidedQuery,
    SharedGuide,
    ShotMean,
    UnsharedGuide,
    annotation_kernel,
    upsampling_kernel,
)
from export.methods.revolver_early import EarlyGuide, EarlyNetwork, EarlyQuery
from export.revolver_family import revolver_family
from export.revolver_source import MODELS, revolver_checkpoint
from export.sources import panet_checkpoint

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "revolver"
LITE = MODELS[1]
WIDTHS = (4, 4, 6, 6, 6)


def tiny(*, shared: bool) -> GuidedNetwork:
    torch.manual_seed(3)
    model = GuidedModel("tiny", channels=8, shared=shared, buffers=False)
    return GuidedNetwork(model, WIDTHS).eval()


def flat_state(model: str) -> dict[str, torch.Tensor]:
    """A state dict of the official layout that takes next to no room in a file."""
    state = {
        key: torch.full((1,), 0.01).expand(entry.shape)
        for key, entry in read_model_keys(GOLDENS, model).items()
    }
    if "anno_enc.weight" in state:
        state["anno_enc.weight"] = annotation_kernel()
    return state


def saved(tmp_path: Path, state: object) -> Path:
    path = tmp_path / "snapshot-iter4000.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_state_dicts_are_those_of_official_checkpoints(model):
    official = json.loads((GOLDENS / "keys.json").read_text())[model.name]
    own = {k: list(v.shape) for k, v in GuidedNetwork.blank(model).state_dict().items()}
    assert own == {key: entry["shape"] for key, entry in official.items()}


@pytest.mark.parametrize("model", [m for m in MODELS if m.channels == 256], ids=lambda m: m.name)
def test_a_checkpoint_tells_which_model_it_is(tmp_path, model):
    source = revolver_checkpoint(saved(tmp_path, flat_state(model.name)))
    assert source.network.model == model
    assert not source.network.training


def test_a_data_parallel_checkpoint_in_a_wrapping_dict_is_read(tmp_path):
    state = {f"module.{key}": value for key, value in flat_state(LITE.name).items()}
    source = revolver_checkpoint(saved(tmp_path, {"iter": 4000, "state_dict": state}))
    assert source.network.model == LITE


def test_layers_that_later_torch_renumbered_get_their_names_back(tmp_path):
    """Newer versions of torch number what is left of VGG: conv1_2 is layer 2, fc6 layer 31."""
    names = [name for name, _ in GuidedNetwork.blank(LITE).encoder.named_children()]
    assert names[2] == "conv1_2"
    assert names[31] == "fc6"
    state: dict[str, torch.Tensor] = {
        re.sub(r"encoder\.(\w+)\.", lambda m: f"encoder.{names.index(m[1])}.", key): value
        for key, value in flat_state(LITE.name).items()
    }
    assert "encoder.31.weight" in state
    assert revolver_checkpoint(saved(tmp_path, state)).network.model == LITE


def test_guidance_that_training_left_behind_changes_nothing(tmp_path):
    state = flat_state(LITE.name)
    names = []
    for value in (0.0, 7.0):
        state |= {"z": torch.full((2, 256), value), "num_z": torch.full((2, 1), value)}
        source = revolver_checkpoint(saved(tmp_path, state))
        names.append(
            revolver_family(
                alias="r", network=source.network, provenance={}, max_pixels=1 << 20
            ).name
        )
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("fcn32s", "of a network without guidance"),
        ("interactive-early", "of a network without guidance"),
    ],
)
def test_models_that_cannot_be_served_are_named(tmp_path, model, hint):
    with pytest.raises(CheckpointError, match=hint):
        revolver_checkpoint(saved(tmp_path, flat_state(model)))


def test_early_fusion_is_read_too(tmp_path):
    source = revolver_checkpoint(saved(tmp_path, flat_state("cofeat-early")))
    assert isinstance(source.network, EarlyNetwork)
    official = json.loads((GOLDENS / "keys.json").read_text())["cofeat-early"]
    own = {key: list(value.shape) for key, value in source.network.state_dict().items()}
    assert own == {key: entry["shape"] for key, entry in official.items()}
    family = revolver_family(alias="r", network=source.network, provenance={}, max_pixels=1 << 20)
    assert family.provenance["model"] == "cofeat-early"
    lacking = flat_state("cofeat-early")
    del lacking["qry_encoder.fc6.bias"]
    with pytest.raises(CheckpointError, match=r"missing, the first is qry_encoder\.fc6\.bias"):
        revolver_checkpoint(saved(tmp_path, lacking))


def test_a_file_of_another_method_is_named(tmp_path):
    path = saved(tmp_path, flat_state(LITE.name))
    with pytest.raises(CheckpointError, match="looks like a revolver checkpoint, not a PANet"):
        panet_checkpoint(path)
    path = saved(tmp_path, {"encoder.backbone.features.0.0.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="looks like a PANet checkpoint, not a revolver"):
        revolver_checkpoint(path)


def test_a_missing_tensor_another_shape_and_another_kernel_are_refused(tmp_path):
    state = flat_state(LITE.name)
    lacking = {key: value for key, value in state.items() if key != "head.score.bias"}
    with pytest.raises(CheckpointError, match=r"1 keys are missing, the first is head\.score"):
        revolver_checkpoint(saved(tmp_path, lacking))
    for key in ("head.fc7.weight", "encoder.fc6.weight"):
        lacking = {name: value for name, value in state.items() if name != key}
        with pytest.raises(CheckpointError, match=f"1 keys are missing, the first is {key}"):
            revolver_checkpoint(saved(tmp_path, lacking))
    odd = state | {"head.fc7.weight": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match=r"head\.fc7\.weight has the shape \(\)"):
        revolver_checkpoint(saved(tmp_path, odd))
    bent = state | {"anno_enc.weight": annotation_kernel() * 1.5}
    with pytest.raises(CheckpointError, match="changed network"):
        revolver_checkpoint(saved(tmp_path, bent))
    half = {key: value.half() for key, value in state.items()}
    with pytest.raises(CheckpointError, match="half precision"):
        revolver_checkpoint(saved(tmp_path, half))


@pytest.mark.parametrize("size", [(33, 33), (64, 65), (129, 161), (100, 97)])
def test_annotations_shrink_as_the_fixed_convolution_does(size):
    planes = (torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    padded = torch.nn.functional.pad(planes.transpose(0, 1), (0, 31, 0, 31))
    wanted = torch.nn.functional.conv2d(padded, annotation_kernel(), stride=32).transpose(0, 1)
    grid = torch.zeros(1, 1, *(-(-side // 32) - 1 for side in size))
    torch.testing.assert_close(AnnotatedCells.shrink(grid, planes), wanted)
    with torch.no_grad():
        image = torch.zeros(1, *size, 3, dtype=torch.uint8)
        assert GuidedFeatures(tiny(shared=True))(image).shape[2:] == wanted.shape[2:]


def test_the_fixed_kernels_are_those_of_the_specification():
    assert float(annotation_kernel().sum()) == pytest.approx(1)
    kernel = upsampling_kernel(2)
    assert float(kernel[0, 0].sum()) == 1024
    assert not kernel[0, 1].any()


def official_scores(network, query, vectors):
    """The head as the paper has it: query and guidance tiled side by side."""
    tiled = [vector[:, :, None, None].expand(-1, -1, *query.shape[2:]) for vector in vectors]
    with torch.no_grad():
        return network.head(torch.cat([query, *tiled], dim=1))


def test_the_split_head_scores_as_the_tiled_one_where_classes_compete():
    network = tiny(shared=True)
    query, support = torch.rand(1, 8, 3, 4), torch.rand(1, 8, 2, 5)
    planes = (torch.rand(1, 3, 96, 180) > 0.8).float()
    guide = SharedGuide(network)
    with torch.no_grad():
        guidance, weights = guide(support, planes)
        logits = GuidedDecode(network.head)(GuidedQuery(network)(query), guidance)
        z = guide.annotated(support, planes)
    assert weights.tolist() == [[1, 1, 1]]
    for plane in range(3):
        torch.testing.assert_close(
            logits[:, plane], official_scores(network, query, [z[:, plane]]), rtol=1e-4, atol=1e-5
        )


def test_the_split_head_gives_the_margin_of_the_tiled_one_where_each_way_is_a_task():
    """Foreground goes in before background; pixels of the other way are background."""
    network = tiny(shared=False)
    query, support = torch.rand(1, 8, 3, 4), torch.rand(1, 8, 2, 5)
    labels = torch.randint(0, 3, (96, 180), generator=torch.Generator().manual_seed(1))
    planes = torch.stack([labels == value for value in range(3)]).float()[None]
    with torch.no_grad():
        guidance, weights = UnsharedGuide(network)(support, planes)
        logits = GuidedDecode(network.head)(GuidedQuery(network)(query), guidance)
    assert weights.tolist() == [[1, 1]]
    for way in (1, 2):
        binary = torch.stack([labels != way, labels == way]).float()[None]
        z = AnnotatedCells()(support, binary)
        scores = official_scores(network, query, [z[:, 1], z[:, 0]])
        torch.testing.assert_close(
            logits[:, way - 1], scores[:, 1:] - scores[:, :1], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("marked", "shared", "unshared", "rest"),
    [
        ((0, 1), [1, 1, 0], [1, 0], [1, 0]),
        ((0,), [1, 0, 0], [1, 1], [1, 1]),
        ((), [0, 0, 0], [1, 1], [0, 0]),
        ((1,), [0, 1, 0], [1, 0], [0, 0]),
        ((1, 2), [0, 1, 1], [1, 1], [1, 1]),
    ],
)
def test_shots_count_as_the_official_code_counts_them(marked, shared, unshared, rest):
    """Shared: those that annotate the channel. Unshared: all that are shots of the way's task.

    Unless asked to leave out those of them that lack the annotation.
    """
    planes = torch.zeros(1, 3, 64, 64)
    for plane in marked:
        planes[0, plane, 5, 5 + plane] = 1
    support = torch.rand(1, 8, 1, 1)
    with torch.no_grad():
        guidance, weights = SharedGuide(tiny(shared=True))(support, planes)
        assert weights[0].tolist() == shared
        assert guidance[0].abs().amax(dim=1).bool().tolist() == [bool(w) for w in shared]
        assert UnsharedGuide(tiny(shared=False))(support, planes)[1][0].tolist() == unshared
        _, objects, _, others = AnnotatingGuide(tiny(shared=False))(support, planes)
    assert (objects[0].tolist(), others[0].tolist()) == (shared[1:], rest)


@pytest.mark.parametrize("mean", ShotMean)
def test_the_mean_of_an_unshared_head_runs_over_all_shots_or_over_those_that_annotate(mean):
    """Of three shots, two show the object and two its surroundings."""
    network = tiny(shared=False)
    query = torch.rand(1, 8, 3, 4)
    supports = [torch.rand(1, 8, 2, 3) for _ in range(3)]
    both = torch.zeros(1, 2, 96, 128)
    both[:, 0, 50:], both[:, 1, :40] = 1, 1
    shots = [both, both * torch.tensor([1.0, 0]).view(1, 2, 1, 1), both.flip(3)]
    shots[2][:, 0] = 0
    guide = {ShotMean.ALL: UnsharedGuide, ShotMean.ANNOTATING: AnnotatingGuide}[mean](network)
    decode = {ShotMean.ALL: GuidedDecode, ShotMean.ANNOTATING: AnnotatingDecode}[mean]
    pairs = list(zip(supports, shots, strict=True))
    with torch.no_grad():
        found = [torch.stack(made) for made in zip(*(guide(*pair) for pair in pairs), strict=True)]
        merged = [
            (values * weights.unsqueeze(3)).sum(dim=0) / weights.sum(dim=0).unsqueeze(2)
            for values, weights in zip(found[::2], found[1::2], strict=True)
        ]
        logits = decode(network.head)(GuidedQuery(network)(query), *merged)
        z = torch.stack([AnnotatedCells()(*pair)[0] for pair in pairs])
    counts = torch.tensor([3, 3] if mean is ShotMean.ALL else [2, 2])
    means = z.sum(dim=0) / counts.unsqueeze(1)
    scores = official_scores(network, query, [means[None, 1], means[None, 0]])
    torch.testing.assert_close(logits[:, 0], scores[:, 1:] - scores[:, :1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "cofeat-early"])
def test_a_mean_over_annotating_shots_is_refused_where_there_is_no_choice(name):
    network = EarlyNetwork(WIDTHS).eval() if name == "cofeat-early" else tiny(shared=True)
    with pytest.raises(ExportError) as refused:
        revolver_family(
            alias="guided",
            network=network,
            provenance={},
            max_pixels=128 * 128,
            mean=ShotMean.ANNOTATING,
        )
    assert str(refused.value) == (
        f"{name} has no choice of the mean: leave out --mean annotating, which is for "
        "cofeat-late-lite-unshared."
    )


def test_padded_ways_change_nothing_for_the_real_ones():
    support, planes = torch.rand(1, 8, 2, 3), (torch.rand(1, 2, 96, 128) > 0.5).float()
    padded = torch.cat([planes, torch.zeros(1, 3, 96, 128)], dim=1)
    network = tiny(shared=False)
    for guide in (SharedGuide(tiny(shared=True)), UnsharedGuide(network), AnnotatingGuide(network)):
        with torch.no_grad():
            alone, among = guide(support, planes), guide(support, padded)
        for few, many in zip(alone, among, strict=True):
            torch.testing.assert_close(many[:, : few.shape[1]], few)


@pytest.fixture(scope="module")
def early() -> EarlyNetwork:
    torch.manual_seed(4)
    return EarlyNetwork(WIDTHS).eval()


def early_scores(network, query, supports):
    """Section 5 and 6 of the specification: one mean over the positions of all supports."""
    positions = []
    for image, labels in supports:
        channels = torch.stack([labels == 0, labels == 1]).float()[None]
        grown = torch.nn.functional.max_pool2d(channels, 11, stride=1, padding=5) * 256 - 128
        encoded = network.supp_encoder(torch.cat([image, grown], dim=1))
        positions.append(encoded.flatten(2))
    mean = torch.cat(positions, dim=2).mean(dim=2)
    encoded = network.qry_encoder(query)
    tiled = mean[:, :, None, None].expand(-1, -1, *encoded.shape[2:])
    return network.head(torch.cat([tiled, encoded], dim=1))


def test_early_fusion_pools_the_positions_of_all_supports(early):
    """A larger image weighs more; unknown pixels (2 here) are in no channel."""
    generator = torch.Generator().manual_seed(6)
    sizes = ((70, 100), (130, 97))
    supports = [
        (
            torch.randn(1, 3, *size, generator=generator) * 50,
            (torch.rand(size, generator=generator) * 60).long(),
        )
        for size in sizes
    ]
    query = torch.randn(1, 3, 66, 99, generator=generator) * 50
    guide, guidance, weights = EarlyGuide(early), [], []
    with torch.no_grad():
        for image, labels in supports:
            planes = torch.stack([labels == 0, labels == 1]).float()[None]
            vector, weight = guide(image, planes)
            guidance.append(vector)
            weights.append(weight)
        assert [float(weight) for weight in weights] == [2 * 3, 4 * 3]
        merged = (guidance[0] * 6 + guidance[1] * 12) / 18
        margins = GuidedDecode(early.head)(EarlyQuery(early)(query), merged)
        wanted = early_scores(early, query, supports)
    torch.testing.assert_close(
        margins[:, :, 0], wanted[:, 1:] - wanted[:, :1], rtol=1e-4, atol=1e-5
    )


def test_early_fusion_encodes_every_way_against_the_others(early):
    image = torch.randn(1, 3, 64, 64)
    labels = torch.randint(0, 3, (64, 64), generator=torch.Generator().manual_seed(1))
    planes = torch.stack([labels == value for value in range(3)]).float()[None]
    guide = EarlyGuide(early)
    with torch.no_grad():
        together, weights = guide(image, planes)
        for way in (1, 2):
            binary = torch.stack([labels != way, labels == way]).float()[None]
            torch.testing.assert_close(together[:, way - 1], guide(image, binary)[0][:, 0])
    assert weights.tolist() == [[1, 1]]
