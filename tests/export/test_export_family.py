from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as triton

from export.configs import from_text, model_configs, to_text
from export.errors import ExportError
from export.family import EXTENT, digest_of_tensors
from export.prototype_family import prototype_family


def test_the_name_is_alias_and_digest(family):
    assert re.fullmatch(r"tiny-[0-9a-f]{8}", family.name)
    assert family.digest.startswith(family.name.removeprefix("tiny-"))
    assert len(family.digest) == 64


def test_the_same_weights_and_settings_give_the_same_digest_under_any_alias(make_family):
    assert make_family().digest == make_family().digest == make_family(alias="other").digest


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": (40, 40)}, {"max_batch": 4}])
def test_other_weights_or_settings_give_another_digest(make_family, change):
    assert make_family(**change).digest != make_family().digest


def test_the_digest_of_tensors_sees_names_shapes_types_and_values():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    seen = {
        digest_of_tensors(tensors),
        digest_of_tensors({"a": torch.zeros(3, 2), "b": torch.ones(1)}),
        digest_of_tensors({"a": torch.zeros(2, 3), "c": torch.ones(1)}),
        digest_of_tensors({"a": torch.zeros(2, 3), "b": torch.ones(1) * 2}),
        digest_of_tensors({"a": torch.zeros(2, 3), "b": torch.ones(1).double()}),
    }
    assert len(seen) == 5
    assert digest_of_tensors(dict(reversed(tensors.items()))) == digest_of_tensors(tensors)


@pytest.mark.parametrize("alias", ["", "Tiny", "1tiny", "a" * 41, "a_b", "a b", "-a"])
def test_an_alias_that_cannot_name_a_model_is_refused(make_family, alias):
    with pytest.raises(ExportError, match="lower-case letters"):
        make_family(alias=alias)


@pytest.mark.parametrize("size", [(16, 64), (64, 4096)])
def test_sizes_out_of_bounds_are_refused(make_family, size):
    with pytest.raises(ExportError, match=f"{size[0]}x{size[1]}"):
        make_family(size=size)


def test_a_size_that_the_trunk_does_not_take_is_refused():
    trunk = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReflectionPad2d(40))
    with pytest.raises(ExportError, match="choose another --size"):
        prototype_family(method="panet", alias="a", trunk=trunk, size=(32, 32), provenance={})


def test_every_model_carries_all_parameters_and_differs_in_its_role_only(family):
    roles = {role: family.parameters(role) for role in family.roles}
    assert set(roles) == {"features", "guide", "decode", "support_encoder", "query_decoder"}
    for role, parameters in roles.items():
        assert parameters.pop("fewseg.role") == role
    assert all(parameters == roles["features"] for parameters in roles.values())
    shared = roles["features"]
    assert shared["fewseg.graphs"] == "decode,features,guide,query_decoder,support_encoder"
    assert shared["fewseg.input_size"] == "40x32"
    assert datetime.fromisoformat(shared["fewseg.created"]).tzinfo == UTC
    assert json.loads(shared["fewseg.guidance"])[0]["weight"] == "weights"
    assert json.loads(shared["fewseg.provenance"])["weights"] == "random"


def test_a_family_names_the_graphs_that_take_the_extent(family):
    assert "fewseg.extent" not in family.parameters("decode")
    graphs = tuple(
        graph if graph.role == "features" else replace(graph, inputs=(*graph.inputs, EXTENT))
        for graph in family.graphs
    )
    told = replace(family, graphs=graphs)
    assert told.parameters("features")["fewseg.extent"] == "decode,guide"
    configs = model_configs(told)
    for role, before in (("support_encoder", "planes"), ("query_decoder", "prototypes")):
        assert [t.name for t in configs[role].input] == ["image", before, "extent"]
        steps = configs[role].ensemble_scheduling.step
        assert ["extent" in step.input_map for step in steps] == [False, True]


def test_configs_survive_their_text(family):
    for config in model_configs(family).values():
        assert from_text(to_text(config)) == config


def test_graph_configs_say_everything_that_triton_would_have_to_guess(family):
    for graph in family.graphs:
        config = model_configs(family)[graph.role]
        assert config.backend == "onnxruntime"
        assert config.max_batch_size == 8
        assert config.version_policy.latest.num_versions == 1
        assert [group.count for group in config.instance_group] == [1]
        queue = config.dynamic_batching.default_queue_policy
        assert queue.timeout_action == triton.ModelQueuePolicy.REJECT
        assert queue.allow_timeout_override
        assert queue.max_queue_size > 0
        assert [tuple(t.dims) for t in config.input] == [spec.dims for spec in graph.inputs]
        assert [tuple(t.dims) for t in config.output] == [spec.dims for spec in graph.outputs]
        (warmup,) = config.model_warmup
        for spec in graph.inputs:
            dims = warmup.inputs[spec.name].dims
            assert len(dims) == len(spec.dims)
            assert all(dim > 0 for dim in dims)


def test_ensembles_wire_their_steps_and_expose_only_what_ends_a_path(family):
    configs = model_configs(family)
    encoder, decoder = configs["support_encoder"], configs["query_decoder"]
    assert [t.name for t in encoder.input] == ["image", "planes"]
    assert [t.name for t in encoder.output] == ["prototypes", "weights"]
    assert [t.name for t in decoder.input] == ["image", "prototypes"]
    assert [t.name for t in decoder.output] == ["logits"]
    for ensemble, last in ((encoder, "guide"), (decoder, "decode")):
        assert ensemble.platform == "ensemble"
        assert not ensemble.backend
        steps = [step.model_name for step in ensemble.ensemble_scheduling.step]
        assert steps == [family.model_name("features"), family.model_name(last)]
        fed = {
            name for step in ensemble.ensemble_scheduling.step for name in step.input_map.values()
        }
        assert not fed & {tensor.name for tensor in ensemble.output}
