# SPDX-License-Identifier: Apache-2.0
"""Accelerators in a repository's configs.

No TensorRT and no OpenVINO is run here: what is held is what stands in the configs, that the check
reads it, and that a server without them serves the repository all the same.
"""

import shutil

import numpy as np
import onnx
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from typer.testing import CliRunner

from export.accelerate import OpenVino, Outcome, Plain, TensorRt, accelerate
from export.check import check
from export.cli import app
from export.configs import from_text, to_text
from export.errors import ExportError, RepositoryWriteError
from tests.helpers.tiny_repository import write_tiny_repository

TENSORRT = TensorRt(half=True, engine_cache="/cache/", ways=4, shots=3)


@pytest.fixture
def copied(repository, tmp_path):
    """The exported tiny family: input 40 x 32, grid 5 x 4, four channels, batches of 8."""
    return shutil.copytree(repository, tmp_path / "copied")


def config_of(repository, role):
    (path,) = repository.glob(f"*_{role}/config.pbtxt")
    return from_text(path.read_text())


def tensorrt_of(repository, role):
    accelerators = config_of(repository, role).optimization.execution_accelerators
    (accelerator,) = accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    return accelerator.parameters


def test_tensorrt_gets_precision_cache_and_profiles(copied):
    changed = accelerate(copied, TENSORRT).changed
    assert sorted(model.rpartition("_")[2] for model in changed) == ["decode", "features", "guide"]
    features, decode = tensorrt_of(copied, "features"), tensorrt_of(copied, "decode")
    assert features["precision_mode"] == "FP16"
    assert decode["precision_mode"] == tensorrt_of(copied, "guide")["precision_mode"] == "FP32"
    assert features["trt_engine_cache_path"].startswith("/cache/tiny-")
    assert features["trt_profile_min_shapes"] == "image:1x40x32x3"
    assert features["trt_profile_max_shapes"] == "image:8x40x32x3"
    assert decode["trt_profile_min_shapes"] == "features:1x4x5x4,prototypes:1x2x4"
    assert decode["trt_profile_opt_shapes"] == "features:8x4x5x4,prototypes:8x2x4"
    assert decode["trt_profile_max_shapes"] == "features:8x4x5x4,prototypes:8x5x4"
    assert check(copied) == []


def test_stacked_shots_are_counted_as_the_gateway_pads_them(tmp_path):
    write_tiny_repository(tmp_path, binary=True, stack=True)
    accelerate(tmp_path, TensorRt(half=False, engine_cache="/cache", ways=3, shots=5))
    told = tensorrt_of(tmp_path, "decode")["trt_profile_max_shapes"]
    most = dict(part.split(":") for part in told.split(","))
    assert most["foreground"] == "8x8x4x8"  # batch, shots, ways, channels
    assert most["validity"] == "8x8"
    with pytest.raises(ExportError, match="at most 8 ways"):
        accelerate(tmp_path, TensorRt(half=False, engine_cache="/cache", ways=9))


def test_a_plan_replaces_the_one_before_and_none_undoes_it(copied):
    before = {path: path.read_text() for path in copied.glob("*/config.pbtxt")}
    accelerate(copied, TENSORRT)
    accelerate(copied, OpenVino())
    config = config_of(copied, "features")
    assert not config.optimization.execution_accelerators.gpu_execution_accelerator
    (openvino,) = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert openvino.name == "openvino"
    assert check(copied) == []
    accelerate(copied, Plain())
    assert {path: path.read_text() for path in copied.glob("*/config.pbtxt")} == before
    assert accelerate(copied, Plain()) == Outcome((), ())


@pytest.mark.parametrize("inner", [False, True], ids=["outermost", "in a branch"])
@pytest.mark.parametrize("name", ["model.onnx", "other.onnx"])
def test_a_graph_with_a_loop_stays_without_openvino(copied, name, inner):
    (path,) = copied.glob("*_decode/1/model.onnx")
    model = onnx.load(path)
    graph = model.graph
    if inner:
        graph = graph.node.add(op_type="If").attribute.add(name="then_branch", type="GRAPH").g
    graph.node.add(op_type="Scan")
    onnx.save(model, path)
    config = config_of(copied, "decode")
    config.default_model_filename = path.rename(path.with_name(name)).name
    path.parents[1].joinpath("config.pbtxt").write_text(to_text(config))
    outcome = accelerate(copied, OpenVino())
    decode = path.parents[1].name
    assert outcome.plain == (decode,)
    assert decode not in outcome.changed
    assert not config_of(copied, "decode").HasField("optimization")
    assert config_of(copied, "guide").HasField("optimization")
    told = CliRunner().invoke(app, ["accelerate", str(copied), "--openvino"]).output
    assert told == f"{decode} stays plain: openvino cannot run it\n"


def test_plans_take_no_accelerator(copied):
    (path,) = copied.glob("*_decode/config.pbtxt")
    config = from_text(path.read_text())
    config.ClearField("platform")
    config.backend, config.default_model_filename = "tensorrt", "model.plan"
    path.write_text(to_text(config))
    before = path.read_text()
    accelerate(copied, OpenVino())
    assert path.read_text() == before


def test_a_graph_that_cannot_be_read_is_named(copied):
    (path,) = copied.glob("*_decode/1/model.onnx")
    path.write_bytes(b"half a gra")
    with pytest.raises(RepositoryWriteError, match=r"decode/1/model\.onnx cannot be read"):
        accelerate(copied, OpenVino())


def test_images_of_any_size_are_refused_and_nothing_changes(copied):
    for path in copied.glob("*_features/config.pbtxt"):
        config = from_text(path.read_text())
        config.input[0].dims[:2] = [-1, -1]
        config.input[0].dims.append(-1)
        path.write_text(to_text(config))
    before = {path: path.read_text() for path in copied.glob("*/config.pbtxt")}
    with pytest.raises(ExportError, match="takes images of any size"):
        accelerate(copied, TENSORRT)
    assert {path: path.read_text() for path in copied.glob("*/config.pbtxt")} == before


def test_what_is_no_repository_is_refused(tmp_path):
    with pytest.raises(RepositoryWriteError, match="is not a folder"):
        accelerate(tmp_path / "nothing", OpenVino())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"precision_mode": "INT4"}, "precision_mode must be FP32 or FP16"),
        ({"trt_engine_cache_path": ""}, "needs a trt_engine_cache_path"),
        ({"trt_profile_max_shapes": "image:9x40x32x3"}, "has batch 9; it must be 1 to 8"),
        ({"trt_profile_max_shapes": "image:8x40x32"}, "must have 4 extents"),
        ({"trt_profile_opt_shapes": "image:1x41x32x3"}, "is [41, 32, 3], and [40, 32, 3]"),
        ({"trt_profile_min_shapes": "picture:1x40x32x3"}, "the inputs differ in 'image'"),
        ({"trt_profile_max_shapes": "image:4x40x32x3"}, "do not grow from min to max"),
    ],
)
def test_the_check_names_what_is_wrong_with_an_accelerator(copied, change, told):
    accelerate(copied, TENSORRT)
    (path,) = copied.glob("*_features/config.pbtxt")
    config = from_text(path.read_text())
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    accelerators[0].parameters.update(change)
    path.write_text(to_text(config))
    problems = check(copied)
    assert any(told in problem for problem in problems), problems


def test_a_server_without_accelerators_serves_the_repository_all_the_same(copied, serve_triton):
    accelerate(copied, TENSORRT)
    (folder,) = copied.glob("*_features")
    with InferenceServerClient(serve_triton(copied).grpc_address) as client:
        client.load_model(folder.name)
        image = InferInput("image", [1, 40, 32, 3], "UINT8")
        image.set_data_from_numpy(np.zeros((1, 40, 32, 3), np.uint8))
        assert client.infer(folder.name, [image]).as_numpy("features").shape == (1, 4, 5, 4)


def test_the_command_says_what_it_changed(copied):
    runner = CliRunner()
    done = runner.invoke(app, ["accelerate", str(copied), "--openvino"])
    assert done.exit_code == 0
    assert done.output.count("is set to openvino") == 3
    again = runner.invoke(app, ["accelerate", str(copied), "--openvino"])
    assert again.output == ""


def test_the_command_sets_one_accelerator(copied):
    runner = CliRunner()
    done = runner.invoke(app, ["accelerate", str(copied), "--tensorrt", "fp16"])
    assert done.exit_code == 0
    assert done.output.count("is set to tensorrt") == 3
    undone = runner.invoke(app, ["accelerate", str(copied), "--plain"])
    assert undone.output.count("is set to none") == 3
    for options in ([], ["--openvino", "--plain"], ["--tensorrt", "fp32", "--openvino"]):
        refused = runner.invoke(app, ["accelerate", str(copied), *options])
        assert refused.exit_code == 1
        assert "Give one of" in refused.output
