from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from export.errors import GraphError
from export.family import PLANES, Free, Graph, TensorSpec
from export.graphs import OnnxGraph, example_tensors, export_graph

VECTOR = TensorSpec("x", (3,))


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Unsteady(nn.Module):
    """Computes something else each time, as an export that baked in a value would."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def lengths(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def models(family) -> dict[str, onnx.ModelProto]:
    return {graph.role: onnx.load_from_string(export_graph(graph)) for graph in family.graphs}


def test_graphs_are_readable_by_the_runtime_of_triton_24_10(models):
    for model in models.values():
        assert model.ir_version == 10
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]


def test_declared_dims_are_those_of_the_specs(family, models):
    for graph in family.graphs:
        pairs = [
            *zip(graph.inputs, models[graph.role].graph.input, strict=True),
            *zip(graph.outputs, models[graph.role].graph.output, strict=True),
        ]
        for spec, value in pairs:
            inner = ["planes" if dim == PLANES else dim for dim in spec.dims]
            assert value.name == spec.name
            assert lengths(value) == ["batch", *inner]


def test_graphs_tell_nothing_of_the_machine_that_made_them(models):
    for model in models.values():
        content = model.SerializeToString()
        for trace in (b"site-packages", b".py", b"torch.fx", b"stack_trace"):
            assert trace not in content


def test_the_same_graph_gives_the_same_bytes(family, models, repository):
    for role, model in models.items():
        written = repository / family.model_name(role) / "1" / "model.onnx"
        assert written.read_bytes() == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("planes", [2, 5])
def test_batch_and_ways_are_free(family, models, batch, planes):
    for graph in family.graphs:
        inputs = example_tensors(graph.inputs, batch=batch, lengths={Free.PLANES: planes})
        feeds = {spec.name: x.numpy() for spec, x in zip(graph.inputs, inputs, strict=True)}
        answers = OnnxGraph(models[graph.role].SerializeToString())(feeds)
        with torch.no_grad():
            results = graph.module(*inputs)
        expected = (results,) if isinstance(results, Tensor) else results
        for spec, wanted in zip(graph.outputs, expected, strict=True):
            np.testing.assert_allclose(answers[spec.name], wanted.numpy(), atol=1e-4, rtol=1e-4)


def test_queries_of_one_batch_do_not_touch_each_other(family, models):
    decode = next(graph for graph in family.graphs if graph.role == "decode")
    inputs = example_tensors(decode.inputs, batch=3, lengths={Free.PLANES: 4})
    feeds = {spec.name: x.numpy() for spec, x in zip(decode.inputs, inputs, strict=True)}
    run = OnnxGraph(models["decode"].SerializeToString())
    together = run(feeds)["logits"]
    for index in range(3):
        alone = run({name: x[index : index + 1] for name, x in feeds.items()})["logits"]
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)


def test_an_empty_annotation_gives_zeros_in_the_exported_guide(family, models):
    guide = next(graph for graph in family.graphs if graph.role == "guide")
    inputs = example_tensors(guide.inputs, batch=1, lengths={Free.PLANES: 3})
    feeds = {"features": inputs[0].numpy(), "planes": np.zeros_like(inputs[1].numpy())}
    answers = OnnxGraph(models["guide"].SerializeToString())(feeds)
    assert not answers["prototypes"].any()
    assert not answers["weights"].any()


def test_a_graph_that_computes_something_else_is_refused():
    graph = Graph("decode", Unsteady(), (VECTOR,), (TensorSpec("y", (3,)),))
    with pytest.raises(GraphError, match="differs from torch"):
        export_graph(graph)


@pytest.mark.parametrize("dims", [(4,), (3, 1)])
def test_a_promise_that_the_graph_does_not_keep_is_refused(dims):
    graph = Graph("decode", Double(), (VECTOR,), (TensorSpec("y", dims),))
    with pytest.raises(GraphError, match="y of the decode graph"):
        export_graph(graph)


def test_bytes_that_are_no_graph_are_refused():
    with pytest.raises(GraphError, match="does not load"):
        OnnxGraph(b"no graph")


def test_example_tensors_are_the_same_every_time_and_fill_the_range_of_bytes():
    specs = [TensorSpec("image", (20, 20, 3), "uint8"), dataclasses.replace(VECTOR, dims=(PLANES,))]
    image, vector = example_tensors(specs, batch=2, lengths={Free.PLANES: 5})
    assert image.dtype == torch.uint8
    assert image.max() > 250
    assert vector.shape == (2, 5)
    assert image.equal(example_tensors(specs, batch=2, lengths={Free.PLANES: 5})[0])
