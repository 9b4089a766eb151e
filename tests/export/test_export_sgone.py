from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from export.checkpoints import read_checkpoint
from export.errors import CheckpointError
from export.graphs import OnnxGraph, export_graph
from export.methods.sgone import (
    EMBEDDING_CHANNELS,
    NO_SHOT,
    SgOneDecode,
    SgOneFeatures,
    SgOneGuide,
    SgOneNetwork,
    SgOneShotsDecode,
)
from export.sgone_family import ChannelOrder, ShotMerge, sgone_checkpoint, sgone_family

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "sgone"


@pytest.fixture(scope="module")
def network() -> SgOneNetwork:
    torch.manual_seed(0)
    return SgOneNetwork().eval()


def tiny_state(network: SgOneNetwork) -> dict[str, torch.Tensor]:
    """A state dict of the official layout that takes next to no room in a file."""
    return {
        key: torch.full((1,), 0.01).expand(value.shape)
        for key, value in network.state_dict().items()
    }


def make_family(network, **options):
    options = {"alias": "sgone", "provenance": {}, "max_pixels": 1 << 20} | options
    return sgone_family(network=network, **options)


class _PickleOfPython2(pickle._Pickler):
    """Writes text as Python 2 wrote its byte strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        self.write(b"U" + bytes([len(text)]) + text.encode("latin1"))
        self.memoize(text)

    dispatch[str] = save_string


def save_as_python_2(content: object, path: Path) -> None:
    def dump(value, file, protocol):
        _PickleOfPython2(file, protocol).dump(value)

    module = SimpleNamespace(__name__="pickle", Pickler=_PickleOfPython2, dump=dump)
    torch.save(content, path, pickle_module=module, _use_new_zipfile_serialization=False)


def test_the_state_dict_is_that_of_official_checkpoints(network):
    official = json.loads((GOLDENS / "keys.json").read_text())
    own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert own == {key: entry["shape"] for key, entry in official.items()}


def test_a_snapshot_that_python_2_wrote_is_read(network, tmp_path):
    path = tmp_path / "step_10000.pth.tar"
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-5, "params": [140234, 1 << 40]}]}
    content = {
        "global_counter": 10000,
        "state_dict": tiny_state(network),
        "optimizer": optimizer,
    }
    save_as_python_2(content, path)
    assert b"U\nstate_dict" in path.read_bytes()
    assert read_checkpoint(path).keys() == network.state_dict().keys()
    assert not sgone_checkpoint(path).training


def test_a_file_of_another_method_is_named(network, tmp_path):
    torch.save(
        {"module.residule1.1.weight": torch.ones(1), "module.layer55.0.bias": torch.ones(1)},
        tmp_path / "best.pth",
    )
    with pytest.raises(CheckpointError, match="looks like a CANet checkpoint, not an SG-One"):
        sgone_checkpoint(tmp_path / "best.pth")
    state = tiny_state(network)
    del state["exit_layer.bias"]
    torch.save({"state_dict": state}, tmp_path / "step_1.pth.tar")
    with pytest.raises(CheckpointError, match=r"the first is exit_layer\.bias"):
        sgone_checkpoint(tmp_path / "step_1.pth.tar")


def test_the_order_of_colours_makes_another_family(network):
    image = torch.randint(0, 256, (1, 24, 20, 3), dtype=torch.uint8)
    with torch.no_grad():
        bgr = SgOneFeatures(network, bgr=True)(image)
        rgb = SgOneFeatures(network, bgr=False)(image.flip(-1))
    torch.testing.assert_close(bgr, rgb)
    names = {make_family(network, order=order).name for order in ChannelOrder}
    assert len(names) == 2


def test_vectors_are_means_of_embeddings_resized_to_the_mask():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 640, 4, 5, generator=generator)
    planes = (torch.rand(2, 3, 29, 37, generator=generator) > 0.6).float()
    planes[1, 2] = 0
    vectors, weights = SgOneGuide()(features, planes)
    resized = torch.nn.functional.interpolate(
        features[:, :EMBEDDING_CHANNELS], size=(29, 37), mode="bilinear"
    )
    for shot, way in ((0, 0), (0, 1), (1, 0)):
        mask = planes[shot, 1 + way]
        wanted = (resized[shot] * mask).sum(dim=(1, 2)) / mask.sum()
        torch.testing.assert_close(vectors[shot, way], wanted, rtol=1e-4, atol=1e-5)
    assert weights.tolist() == [[1, 1], [1, 0]]
    assert not vectors[1, 1].any(), "the official code divides by zero here"


def official_margin(network, features, vector):
    """Steps 3 to 5 of the specification, with both channels of the last layer."""
    embedding, side = features[:, :EMBEDDING_CHANNELS], features[:, EMBEDDING_CHANNELS:]
    cosine = torch.nn.functional.cosine_similarity(embedding, vector[:, :, None, None], dim=1)
    scores = network.exit_layer(network.classifier_6(side * cosine[:, None]))
    return scores[:, 1] - scores[:, 0]


def test_every_way_is_scored_as_a_run_of_its_own(network):
    features, vectors = torch.randn(2, 640, 4, 5), torch.randn(2, 3, 512)
    with torch.no_grad():
        logits = SgOneDecode(network)(features, vectors)
        assert logits.shape == (2, 3, 1, 6, 7), "the grid of scores has a border of one cell"
        for way in range(3):
            wanted = official_margin(network, features, vectors[:, way])
            torch.testing.assert_close(logits[:, way, 0], wanted, rtol=1e-3, atol=1e-5)


def test_shots_that_decide_alone_do_not_see_each_other(network):
    """Padded shots, and shots that do not show a way, never make a pixel of it foreground."""
    features, vectors = torch.randn(1, 640, 4, 5), torch.randn(1, 3, 2, 512)
    vectors[0, 1, 0] = 0
    validity = torch.tensor([[1.0, 1.0, 0.0]])
    with torch.no_grad():
        logits = SgOneShotsDecode(network)(features, vectors, validity)
        alone = SgOneDecode(network)(features, vectors[:, 0])
    assert logits.shape == (1, 2, 3, 6, 7)
    torch.testing.assert_close(logits[:, :, 0], alone[:, :, 0])
    assert (logits[0, 0, 1] == NO_SHOT).all()
    assert (logits[0, 1, 1] > NO_SHOT).all()
    assert (logits[0, :, 2] == NO_SHOT).all()


@pytest.mark.parametrize("merge", ShotMerge)
def test_exported_decoders_take_any_size_and_number(network, merge):
    graph = make_family(network, merge=merge).graphs[-1]
    content = OnnxGraph(export_graph(graph))
    for ways, shots, rows, columns in ((1, 1, 3, 4), (3, 4, 9, 2)):
        feeds = {"features": torch.randn(2, 640, rows, columns)}
        feeds["vectors"] = torch.randn(2, ways, 512)
        if merge is ShotMerge.ANY:
            feeds["vectors"] = torch.randn(2, shots, ways, 512)
            feeds["validity"] = torch.ones(2, shots)
        with torch.no_grad():
            wanted = graph.module(*feeds.values()).numpy()
        found = content({name: values.numpy() for name, values in feeds.items()})["logits"]
        assert found.shape == (
            2,
            ways,
            shots if merge is ShotMerge.ANY else 1,
            rows + 2,
            columns + 2,
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
