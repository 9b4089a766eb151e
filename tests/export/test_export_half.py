# SPDX-License-Identifier: Apache-2.0
"""Families in half precision: what is converted, and when it is refused."""

import asyncio
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferenceServerClient, InferInput
from typer.testing import CliRunner

from export import half
from export.check import check
from export.cli import app
from export.configs import from_text
from export.errors import GraphError
from export.graphs import OnnxGraph
from export.half import ParityError, halve
from export.half_graph import emulated, is_half, to_half
from export.methods.revolver import GuidedModel, GuidedNetwork
from export.repository import list_families, write_family
from export.revolver_family import revolver_family
from service.core.family import GraphRole
from service.core.ports import SilentTelemetry
from service.engines.embedded import EmbeddedEngine
from tests.helpers.tiny_repository import write_tiny_repository
from tests.helpers.triton import batch_dynamically


@pytest.fixture
def copied(repository, tmp_path):
    """The exported tiny family: input 40 x 32, grid 5 x 4, four channels."""
    return shutil.copytree(repository, tmp_path / "copied")


def graph_of(root, family, role):
    return (root / f"{family}_{role}" / "1" / "model.onnx").read_bytes()


def layer(weights):
    """``y = relu(conv(x / 255))`` of bytes [batch, 3, 8, 8], resized to 16 x 16."""
    weights = np.asarray(weights, np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "scale"], ["normal"]),
            helper.make_node("Conv", ["normal", "weights"], ["conv"]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("Resize", ["relu", "", "scales"], ["y"], mode="linear"),
        ],
        "layer",
        [value("x", TensorProto.UINT8, ["batch", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["batch", len(weights), 16, 16])],
        [
            numpy_helper.from_array(np.float32(255), "scale"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def some_weights():
    return np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)


def test_weights_and_values_are_halved_and_edges_are_not():
    converted = onnx.load_model_from_string(to_half(layer(some_weights())))
    kinds = {weights.name: weights.data_type for weights in converted.graph.initializer}
    assert kinds == {
        "scale": TensorProto.FLOAT,
        "scales": TensorProto.FLOAT,
        "weights.half": TensorProto.FLOAT16,
    }
    assert converted.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert converted.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    # The normalisation stays as it is: its result is the first to be rounded.
    operators = [node.op_type for node in converted.graph.node]
    assert operators == ["Cast", "Div", "Cast", "Conv", "Relu", "Resize", "Cast"]
    assert (converted.ir_version, converted.opset_import[0].version) == (10, 18)


def test_the_emulation_rounds_what_a_gpu_would_round():
    weights = some_weights()
    converted = to_half(layer(weights))
    pixels = np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8)
    made = OnnxGraph(emulated(converted), exact=True)({"x": pixels})["y"]
    inputs = (pixels / np.float32(255)).astype(np.float16).astype(np.float32)
    rounded = weights.astype(np.float16).astype(np.float32)[:, :, 0, 0]
    conv = np.einsum("oc,bchw->bohw", rounded, inputs).astype(np.float16)
    values = np.maximum(conv, 0)
    assert np.abs(made[..., ::2, ::2]).max() > 0
    np.testing.assert_array_equal(made.astype(np.float16).astype(np.float32), made)
    assert made.max() <= values.max() + 2e-3
    exact = OnnxGraph(layer(weights))({"x": pixels})["y"]
    assert 0 < np.abs(made - exact).max() < 5e-3 * np.abs(exact).max()


def test_weights_beyond_half_precision_are_refused():
    weights = some_weights()
    weights[0, 0] = 1e5
    with pytest.raises(GraphError, match="weights holds numbers beyond 65504"):
        to_half(layer(weights))


def test_a_half_family_is_written_beside_the_full_one(copied):
    (before,) = list_families(copied)
    made = halve(copied, "tiny")
    assert all(one.passed for one in made.agreements)
    assert {one.quantity for one in made.agreements} == {"features", "logits", "decisions"}
    name = made.written.family
    assert is_half(graph_of(copied, name, "features"))
    for role in ("guide", "decode"):
        assert graph_of(copied, name, role) == graph_of(copied, before.family, role)
    assert check(copied) == []
    config = from_text((copied / f"{name}_decode" / "config.pbtxt").read_text())
    provenance = json.loads(config.parameters["fewseg.provenance"].string_value)
    assert provenance["precision"] == "float16 in features"
    assert provenance["made_from"] == before.family
    assert not halve(copied, before.family).written.changed


def test_query_features_are_halved_too(tmp_path):
    torch.manual_seed(5)
    model = GuidedModel("tiny", channels=8, shared=False, buffers=False)
    network = GuidedNetwork(model, widths=(4, 4, 6, 6, 6)).eval()
    family = revolver_family(alias="guided", network=network, provenance={}, max_pixels=1 << 20)
    write_family(family, tmp_path)
    made = halve(tmp_path, "guided", alias="guided-half")
    assert made.written.family.startswith("guided-half-")
    assert is_half(graph_of(tmp_path, made.written.family, "query_features"))
    assert any(one.quantity.startswith("query_features") for one in made.agreements)
    assert check(tmp_path) == []


def test_graphs_without_weights_stay_as_they_are(tmp_path):
    family = write_tiny_repository(tmp_path, "rich", binary=True, stack=True, query_features=True)
    for role in ("features", "query_features", "guide", "decode"):
        batch_dynamically(tmp_path, f"{family}_{role}")
    made = halve(tmp_path, "rich").written.family
    unchanged = graph_of(tmp_path, family, "query_features")
    assert graph_of(tmp_path, made, "query_features") == unchanged
    assert is_half(graph_of(tmp_path, made, "features"))


def test_what_differs_too_much_is_not_written(copied, monkeypatch):
    monkeypatch.setattr(half, "FEATURE_TOLERANCE", 1e-6)
    heard = []
    with pytest.raises(ParityError, match=r"is not written .* features differs by .*e-0\d"):
        halve(copied, "tiny", report=heard.extend)
    assert [one.quantity for one in heard if not one.passed] == ["features"]
    assert len(list_families(copied)) == 1


def test_values_that_leave_the_range_are_refused(copied):
    """Weights that fit, and sums that do not."""
    (path,) = copied.glob("*_features/1/model.onnx")
    model = onnx.load(path)
    (convolution,) = [node for node in model.graph.node if node.op_type == "Conv"]
    (large,) = [one for one in model.graph.initializer if one.name == convolution.input[1]]
    values = numpy_helper.to_array(large)
    scaled = values * np.float32(60000 / np.abs(values).max())
    large.CopyFrom(numpy_helper.from_array(scaled, large.name))
    onnx.save(model, path)
    with pytest.raises(ParityError, match="features differs by"):
        halve(copied, "tiny")


def test_the_gateways_engine_runs_it(copied, tmp_path):
    made = halve(copied, "tiny", out=tmp_path / "other")
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 32, 3), dtype=np.uint8)

    async def features(root, family):
        engine = EmbeddedEngine(root, telemetry=SilentTelemetry(), threads=1, workers=1)
        try:
            await engine.load(family)
            return (await engine.run(family, GraphRole.FEATURES, {"image": image}))["features"]
        finally:
            await engine.close()

    (full,) = list_families(copied)
    wanted = asyncio.run(features(copied, full.family))
    given = asyncio.run(features(tmp_path / "other", made.written.family))
    assert 0 < np.abs(wanted - given).max() <= 5e-3 * np.abs(wanted).max()


def test_triton_serves_it(copied, tmp_path, serve_triton):
    made = halve(copied, "tiny", out=tmp_path / "other").written.family
    image = np.random.default_rng(0).integers(0, 256, (2, 40, 32, 3), dtype=np.uint8)
    (full,) = list_families(copied)
    wanted = OnnxGraph(graph_of(copied, full.family, "features"))({"image": image})["features"]
    with InferenceServerClient(serve_triton(tmp_path / "other").grpc_address) as client:
        client.load_model(f"{made}_features")
        tensor = InferInput("image", list(image.shape), "UINT8")
        tensor.set_data_from_numpy(image)
        given = client.infer(f"{made}_features", [tensor]).as_numpy("features")
    assert given.dtype == np.float32
    assert 0 < np.abs(wanted - given).max() <= 5e-3 * np.abs(wanted).max()


def test_the_command_prints_how_near_it_is(copied):
    done = CliRunner().invoke(app, ["half", str(copied), "--family", "tiny"])
    assert done.exit_code == 0, done.output
    for quantity in ("features", "logits", "decisions"):
        assert quantity in done.output
    assert "written to" in done.output
