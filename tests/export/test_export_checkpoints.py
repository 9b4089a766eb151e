from __future__ import annotations

import gzip
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from export.checkpoints import read_checkpoint, recognise, require
from export.errors import CheckpointError

LEGACY = {"_use_new_zipfile_serialization": False}
WANTED = "a PANet checkpoint"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
def test_every_official_layout_reads_the_same(tmp_path, state, options, prefix, wrapper):
    content = OrderedDict((prefix + key, value) for key, value in state.items())
    wrapped = {wrapper: content, "epoch": 3} if wrapper else content
    torch.save(wrapped, tmp_path / "net.pth", **options)
    tensors = read_checkpoint(tmp_path / "net.pth")
    assert list(tensors) == list(state)
    assert all(tensors[key].equal(value) for key, value in state.items())


def test_a_state_dict_of_a_module_reads_with_its_metadata(tmp_path):
    module = nn.BatchNorm2d(3)
    torch.save(nn.DataParallel(module).state_dict(), tmp_path / "net.pth", **LEGACY)
    assert set(read_checkpoint(tmp_path / "net.pth")) == set(module.state_dict())


def test_safetensors_read_too(tmp_path, state):
    save_file(state, tmp_path / "net.safetensors")
    assert read_checkpoint(tmp_path / "net.safetensors")["conv.bias"].equal(state["conv.bias"])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:90])
    assert "truncated" in refused(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_called_so(tmp_path, options, kept):
    path = tmp_path / "net.pth"
    torch.save({"a.weight": torch.randn(50, 50)}, path, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refused(path)
    assert "copy it again" in refused(path)


def test_flipped_bytes_never_escape_as_another_error(tmp_path, state):
    path = tmp_path / "net.pth"
    torch.save(state, path, **LEGACY)
    content = path.read_bytes()
    refusals = 0
    for position in range(0, min(len(content), 400), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError:
            refusals += 1
    assert refusals > 10


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, state, writer):
    path, target = tmp_path / "net.pth", tmp_path / "made-by-the-file"
    content = {**state, "extra": Hostile(target)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, **(LEGACY if writer == "legacy" else {}))
    message = refused(path)
    assert not target.exists()
    if writer != "pickle":
        assert "mkdir" in message
        assert "It is refused" in message


def test_a_whole_module_is_refused_with_the_way_out(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
    assert "torch.save(model.state_dict(), FILE)" in refused(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (gzip.compress(b"weights", mtime=0), "compressed"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"just some text", "no file of torch.save"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, meaning):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    assert meaning in refused(path)


def test_missing_files_and_folders_are_named(tmp_path):
    assert "is a folder" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {}, {"lr": 0.1}])
def test_what_holds_no_state_dict_is_described(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    assert "holds no state dict" in refused(tmp_path / "net.pth")


def wrong(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        require(tensors, expected, path=Path("net.pth"), wanted=WANTED)
    return str(caught.value)


def test_right_tensors_come_back_in_the_order_of_the_network(state):
    shuffled = dict(reversed(state.items()))
    found = require(shuffled, state, path=Path("net.pth"), wanted=WANTED)
    assert list(found) == list(state)


def test_missing_and_extra_keys_are_counted_and_named(state):
    message = wrong({"conv.weight": state["conv.weight"], "head.bias": torch.ones(1)}, state)
    assert "1 keys are missing, the first is conv.bias" in message
    assert "1 keys do not belong, the first is head.bias" in message


def test_another_shape_is_another_variant(state):
    message = wrong({**state, "conv.bias": torch.ones(3)}, state)
    assert "conv.bias has the shape (3,) where (2,) belongs" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_called_so(state, dtype):
    message = wrong({**state, "conv.bias": state["conv.bias"].to(dtype)}, state)
    assert "half precision" in message
    assert ".float()" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(state, value):
    message = wrong({**state, "conv.bias": torch.tensor([1.0, value])}, state)
    assert "conv.bias that are not finite" in message


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["encoder.backbone.features.0.0.weight"], "a PANet checkpoint"),
        (["layer0.0.weight", "init_merge.0.weight", "down_query.0.weight"], "a PFENet checkpoint"),
        (["init_merge.0.weight", "down_query.0.weight", "supp_init_merge.0.weight"], "an SCL"),
        (["backbone.conv1.weight", "hpn_learner.encoder.weight"], "an HSNet checkpoint"),
        (["bottleneck.0.weight", "ppm.features.0.weight"], "a RePRI checkpoint"),
        (["netB.features_1.0.weight"], "an SG-One checkpoint"),
        (["conv1.weight", "residule1.0.weight", "layer55.0.weight"], "a CANet checkpoint"),
        (["model_res.conv1.weight", "residule1.0.weight", "layer55.0.weight"], "a PMMs"),
        (
            ["model_backbone.features_1.0.weight", "residule1.1.weight", "layer55.0.weight"],
            "a PMMs checkpoint",
        ),
        (["encoder.conv1_1.weight", "anno_enc.weight"], "a revolver checkpoint"),
        (["supp_init_merge.0.weight", "transformer.cross_layers.0.weight"], "a CyCTR"),
        (["corr_conv.0.weight", "down_conv.0.weight"], "an ASGNet checkpoint"),
        (["sem_seg_head.a.weight"], "an MM-Former checkpoint"),
        (["features.28.weight", "classifier.6.weight"], "torchvision's VGG-16"),
        (["layer1.0.conv1.weight", "fc.weight"], "torchvision's ResNet"),
    ],
)
def test_networks_are_recognised_by_their_keys(keys, name):
    found = recognise(dict.fromkeys(keys))
    assert found is not None
    assert found.startswith(name)
    if not name.startswith("a PANet"):
        tensors = {key: torch.ones(1) for key in keys}
        assert f"looks like {name}" in wrong(tensors, {"conv.weight": torch.ones(1)})


def test_unknown_keys_are_not_guessed():
    assert recognise({"blob.weight": None}) is None


def test_imagenet_weights_come_with_a_hint():
    tensors = dict.fromkeys(["features.28.weight", "classifier.6.weight"], torch.ones(1))
    assert "--weights imagenet" in wrong(tensors, {"conv.weight": torch.ones(1)})
