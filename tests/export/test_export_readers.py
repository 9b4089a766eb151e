"""Every reader of checkpoints: official files go in, and a wrong one is told what it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from export.asgnet_family import asgnet_checkpoint
from export.canet_family import canet_checkpoint
from export.cli import app
from export.cyctr_family import cyctr_checkpoint
from export.errors import CheckpointError
from export.hsnet_family import hsnet_checkpoint
from export.mmformer_source import mmformer_checkpoint
from export.pfenet_family import pfenet_checkpoint
from export.pmms_family import pmms_checkpoint
from export.repri_family import repri_checkpoint
from export.revolver_source import revolver_checkpoint
from export.scl_canet_family import scl_canet_checkpoint
from export.scl_pfenet_family import scl_pfenet_checkpoint
from export.sgone_family import sgone_checkpoint
from export.sources import panet_checkpoint
from tests.helpers.checkpoints import LAYOUTS, official_content, official_state

READERS: Mapping[str, Callable[[Path], Any]] = {
    "panet": panet_checkpoint,
    "revolver": revolver_checkpoint,
    "sgone": sgone_checkpoint,
    "canet": canet_checkpoint,
    "mmformer": mmformer_checkpoint,
    "hsnet": hsnet_checkpoint,
    "repri": repri_checkpoint,
    "pmms": pmms_checkpoint,
    "asgnet": asgnet_checkpoint,
    "pfenet": pfenet_checkpoint,
    "scl-canet": scl_canet_checkpoint,
    "scl-pfenet": scl_pfenet_checkpoint,
    "cyctr": cyctr_checkpoint,
}

NAMES = {
    "panet": "a PANet checkpoint",
    "revolver": "a revolver checkpoint",
    "sgone": "an SG-One checkpoint",
    "canet": "a CANet checkpoint",
    "mmformer": "an MM-Former checkpoint",
    "hsnet": "an HSNet checkpoint",
    "repri": "a RePRI checkpoint",
    "pmms": "a PMMs checkpoint",
    "asgnet": "an ASGNet checkpoint",
    "pfenet": "a PFENet checkpoint",
    "scl-canet": "an SCL checkpoint of CANet",
    "scl-pfenet": "an SCL checkpoint of PFENet",
    "cyctr": "a CyCTR checkpoint",
}

MODELS = [(method, model) for method, layout in LAYOUTS.items() for model in layout.models or ("",)]


def saved(folder: Path, method: str, state: Mapping[str, Any]) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(official_content(method, state), path)
    return path


def refused(method: str, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        READERS[method](path)
    return str(caught.value)


def test_no_reader_is_left_out():
    commands = typer.main.get_command(app).commands
    readers = {
        name
        for name, command in commands.items()
        if "checkpoint" in {parameter.name for parameter in command.params}
    }
    assert readers - {"compact"} == READERS.keys() == LAYOUTS.keys() == NAMES.keys()


@pytest.mark.parametrize(("method", "model"), MODELS)
def test_official_files_are_read(method, model, tmp_path):
    READERS[method](saved(tmp_path, method, official_state(method, model)))


@pytest.mark.parametrize("method", READERS)
def test_files_of_other_methods_are_named(method, tmp_path):
    for other in READERS:
        path = saved(tmp_path, other, official_state(other))
        if other != method:
            assert f"looks like {NAMES[other]}, not {NAMES[method]}" in refused(method, path)


@pytest.mark.parametrize("method", READERS)
def test_missing_and_surplus_keys_are_named(method, tmp_path):
    state = official_state(method)
    key = list(state)[-1]
    name = key.removeprefix("module.")
    message = refused(method, saved(tmp_path, method, {**state, f"{key}_more": torch.ones(1)}))
    assert f"1 keys do not belong, the first is {name}_more" in message
    del state[key]
    message = refused(method, saved(tmp_path, method, state))
    assert f"1 keys are missing, the first is {name}" in message
    assert NAMES[method] in message


@pytest.mark.parametrize("method", READERS)
def test_half_precision_is_called_so(method, tmp_path):
    halved = {
        key: value.half() if value.is_floating_point() else value
        for key, value in official_state(method).items()
    }
    message = refused(method, saved(tmp_path, method, halved))
    assert "half precision" in message
    assert ".float()" in message


@pytest.mark.parametrize("method", READERS)
def test_truncated_files_are_called_so(method, tmp_path):
    path = saved(tmp_path, method, official_state(method))
    path.write_bytes(path.read_bytes()[:-200])
    assert "copy it again" in refused(method, path)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("method", READERS)
def test_code_in_a_file_is_refused_and_not_run(method, tmp_path):
    target = tmp_path / "made-by-the-file"
    state = {**official_state(method), "extra": Hostile(target)}
    assert "mkdir" in refused(method, saved(tmp_path, method, state))
    assert not target.exists()


@pytest.mark.parametrize("method", READERS)
def test_a_trunk_without_the_rest_is_named(method, tmp_path):
    state = {"layer1.0.conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    assert "looks like torchvision's ResNet" in refused(method, saved(tmp_path, method, state))


@pytest.mark.parametrize("method", ["canet", "pmms", "scl-canet"])
def test_a_trunk_of_another_depth_is_named_by_what_does_not_belong(method, tmp_path):
    state = official_state(method)
    last = "layer3.5.conv1.weight"
    (key,) = (key for key in state if key.endswith(last))
    deeper = {**state, key.replace("layer3.5", "layer3.6"): state[key]}
    message = refused(method, saved(tmp_path, method, deeper))
    assert "1 keys do not belong" in message
    assert "layer3.6.conv1.weight" in message


@pytest.mark.parametrize("method", ["canet", "pmms", "scl-canet"])
def test_a_resnet101_is_named_where_only_resnet50_was_published(method, tmp_path):
    state = official_state(method)
    block = {key: value for key, value in state.items() if "layer3.5." in key}
    deeper = {
        key.replace("layer3.5.", f"layer3.{number}."): value
        for key, value in block.items()
        for number in range(6, 23)
    }
    path = saved(tmp_path, method, {**state, **deeper})
    message = refused(method, path)
    assert f"{NAMES[method]}, but of a ResNet-101" in message
    assert "ResNet-50 was published" in message
    other = "pmms" if method == "canet" else "canet"
    assert f"looks like {NAMES[method]}, not {NAMES[other]}" in refused(other, path)


def test_pmms_on_vgg16_are_refused_by_name(tmp_path):
    shapes = {
        "model_backbone.features_1.0.weight": (64, 3, 3, 3),
        "model_backbone.cls.0.weight": (512, 512, 3, 3),
        "layer5.0.weight": (256, 512, 3, 3),
        "layer55.0.weight": (256, 512, 3, 3),
        "layer55.1.weight": (256,),
        "residule1.1.weight": (256, 258, 3, 3),
    }
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    path = saved(tmp_path, "pmms", state)
    message = refused("pmms", path)
    assert "is of PMMs on VGG-16" in message
    assert "on ResNet-50 can be exported" in message
    assert "looks like a PMMs checkpoint, not a CANet checkpoint" in refused("canet", path)
