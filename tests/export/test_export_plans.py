# SPDX-License-Identifier: Apache-2.0
"""TensorRT plans, built by a stand-in: no GPU and no TensorRT is run here.

What is held is what TensorRT is asked for, what is written, and that nothing is written where it
cannot be asked.
"""

import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from export.check import check
from export.cli import app
from export.configs import from_text, to_text
from export.errors import ExportError, GraphError
from export.graphs import OnnxGraph
from export.half import halve
from export.plan_builder import TensorRtBuilder, find_builder, with_cast_inputs
from export.plans import PlanSettings, build_plans
from export.profiles import profiles, within
from export.repository import list_families
from service.core.family import GraphRole
from service.engines.loading import read_repository
from service.engines.manifest import read_catalog
from tests.export.fake_tensorrt import Module
from tests.helpers.tiny_repository import write_tiny_repository
from tests.helpers.triton import batch_dynamically

GPU = "NVIDIA H200 9.0"


@pytest.fixture
def module():
    return Module()


@pytest.fixture
def find(module):
    return lambda: TensorRtBuilder(module, GPU)


@pytest.fixture
def copied(repository, tmp_path):
    """The exported tiny family: input 40 x 32, grid 5 x 4, four channels, batches of 8."""
    return shutil.copytree(repository, tmp_path / "copied")


@pytest.fixture
def stacked(tmp_path):
    """A binary family of stacked shots with query features: input 32 x 32, eight channels."""
    root = tmp_path / "stacked"
    family = write_tiny_repository(root, "rich", binary=True, stack=True, query_features=True)
    for role in ("features", "query_features", "guide", "decode"):
        batch_dynamically(root, f"{family}_{role}")
    return root


def configs_of(root, family):
    configs = {}
    for path in root.glob(f"{family}_*/config.pbtxt"):
        config = from_text(path.read_text())
        configs[config.parameters["fewseg.role"].string_value] = config
    return configs


def parameters_of(config):
    return {key: value.string_value for key, value in config.parameters.items()}


def plans_by_input(module):
    return {"+".join(sorted(plan.shapes)): plan for plan in module.plans}


def test_a_family_of_plans_is_written_beside_the_one_it_came_from(copied, module, find):
    (before,) = list_families(copied)
    written = build_plans(copied, "tiny", PlanSettings(ways=3), find=find)
    assert written.changed
    assert {one.family for one in list_families(copied)} == {before.family, written.family}
    assert all(one.complete for one in list_families(copied))
    configs = configs_of(copied, written.family)
    assert configs.keys() == {"features", "guide", "decode", "support_encoder", "query_decoder"}
    for role in ("features", "guide", "decode"):
        config = configs[role]
        assert config.backend == "tensorrt"
        assert config.default_model_filename == "model.plan"
        assert [group.kind for group in config.instance_group] == [
            model_config_pb2.ModelInstanceGroup.KIND_GPU
        ]
        assert config.dynamic_batching.default_queue_policy.max_queue_size
        assert config.model_warmup
        files = [path.name for path in (copied / config.name / "1").iterdir()]
        assert files == ["model.plan"]
    for role in ("support_encoder", "query_decoder"):
        steps = [step.model_name for step in configs[role].ensemble_scheduling.step]
        assert all(step.startswith(f"{written.family}_") for step in steps)
    assert check(copied) == []


def test_the_new_family_says_what_it_is_bound_to(copied, find):
    (before,) = list_families(copied)
    written = build_plans(copied, "tiny", PlanSettings(half=True, ways=3), find=find)
    parameters = parameters_of(configs_of(copied, written.family)["guide"])
    provenance = json.loads(parameters["fewseg.provenance"])
    assert provenance["tensorrt"] == "10.5.0"
    assert provenance["gpu"] == GPU
    assert provenance["tensorrt_precision"] == "fp16"
    assert provenance["made_from"] == before.family
    assert provenance["weights"] == "random"
    # Tasks with more ways than the plans hold are refused by the gateway, not by TensorRT.
    assert parameters["fewseg.way_buckets"] == "1,2,4"
    assert parameters["fewseg.created"] >= before.created


def test_profiles_hold_batch_and_ways_and_nothing_else(copied, module, find):
    build_plans(copied, "tiny", PlanSettings(ways=3), find=find)
    plans = plans_by_input(module)
    assert plans["image"].shapes == {"image": ((1, 40, 32, 3), (8, 40, 32, 3), (8, 40, 32, 3))}
    assert plans["features+planes"].shapes["planes"] == (
        (1, 2, 40, 32),
        (8, 2, 40, 32),
        (8, 5, 40, 32),
    )
    assert plans["features+prototypes"].shapes == {
        "features": ((1, 4, 5, 4), (8, 4, 5, 4), (8, 4, 5, 4)),
        "prototypes": ((1, 2, 4), (8, 2, 4), (8, 5, 4)),
    }


def test_shots_are_counted_where_they_are_stacked(stacked, module, find):
    written = build_plans(stacked, "rich", PlanSettings(ways=2, shots=5), find=find)
    shapes = {name: each for plan in module.plans for name, each in plan.shapes.items()}
    assert shapes["foreground"] == ((1, 1, 1, 8), (8, 1, 1, 8), (8, 8, 2, 8))
    assert shapes["background"] == shapes["foreground"]
    assert shapes["validity"] == ((1, 1), (8, 1), (8, 8))
    assert shapes["planes"] == ((1, 2, 32, 32), (8, 2, 32, 32), (8, 3, 32, 32))
    parameters = parameters_of(configs_of(stacked, written.family)["decode"])
    assert parameters["fewseg.shot_buckets"] == "1,2,4,8"
    assert check(stacked) == []


def test_half_precision_is_for_features_alone_and_tf32_for_none(copied, module, find):
    build_plans(copied, "tiny", PlanSettings(half=True, workspace_mib=512), find=find)
    plans = plans_by_input(module)
    assert "FP16" in plans["image"].flags
    for inputs in ("features+planes", "features+prototypes"):
        assert plans[inputs].flags == set()
    assert {plan.pools["workspace"] for plan in module.plans} == {512 << 20}
    assert not any("VERSION_COMPATIBLE" in plan.flags for plan in module.plans)


def test_a_half_family_is_taken_by_its_word(copied, module, find):
    half = halve(copied, "tiny", alias="tiny-half").written.family
    build_plans(copied, half, PlanSettings(half=True), find=find)
    plans = plans_by_input(module)
    assert plans["image"].typed
    assert "FP16" not in plans["image"].flags
    assert not plans["features+planes"].typed


def test_other_settings_and_other_gpus_make_other_families(copied, module, find):
    (before,) = list_families(copied)
    first = build_plans(copied, before.family, PlanSettings(), find=find)
    again = build_plans(copied, before.family, PlanSettings(), find=find)
    assert (again.family, again.changed) == (first.family, False)
    newer = Module()
    newer.__version__ = "10.6.0"
    others = [
        build_plans(copied, before.family, PlanSettings(ways=2), find=find),
        build_plans(copied, before.family, PlanSettings(half=True), find=find),
        build_plans(
            copied, before.family, PlanSettings(), find=lambda: TensorRtBuilder(newer, GPU)
        ),
        build_plans(
            copied, before.family, PlanSettings(), find=lambda: TensorRtBuilder(module, "A10 8.6")
        ),
    ]
    assert len({first.family, *(one.family for one in others)}) == 5


def test_the_timing_cache_is_read_and_kept(copied, module, find, tmp_path):
    cache = tmp_path / "caches" / "timing"
    build_plans(copied, "tiny", PlanSettings(timing_cache=cache), find=find)
    assert [plan.cache for plan in module.plans] == [b"", b"+", b"++"]
    assert cache.read_bytes() == b"+++"
    assert [path.name for path in cache.parent.iterdir()] == ["timing"]


def test_a_graph_that_tensorrt_refuses_changes_nothing(copied, module, find):
    before = sorted(path.name for path in copied.iterdir())
    module.refusal = "No importer for GridSample"
    with pytest.raises(GraphError, match=r"10\.5\.0 does not take the graph: No importer"):
        build_plans(copied, "tiny", PlanSettings(), find=find)
    module.refusal, module.fails = "", True
    with pytest.raises(GraphError, match="built no plan"):
        build_plans(copied, "tiny", PlanSettings(), find=find)
    assert sorted(path.name for path in copied.iterdir()) == before


def test_images_of_any_size_are_refused(copied):
    (path,) = copied.glob("*_features/config.pbtxt")
    config = from_text(path.read_text())
    guidance = config.parameters["fewseg.guidance"].string_value
    assert profiles(config, guidance, (1, 2), (1,))["image"].most == (8, 40, 32, 3)
    config.input[0].dims[:2] = [-1, -1]
    with pytest.raises(ExportError, match="takes images of any size"):
        profiles(config, guidance, (1, 2), (1,))


def test_a_release_without_the_flag_says_what_to_do(copied):
    builder = TensorRtBuilder(Module(weakly_typed=False), GPU)
    with pytest.raises(ExportError, match="fewseg-export half"):
        build_plans(copied, "tiny", PlanSettings(half=True), find=lambda: builder)
    assert build_plans(copied, "tiny", PlanSettings(), find=lambda: builder).changed


@pytest.mark.parametrize(
    ("name", "told"),
    [("nobody", "names no single family"), ("tiny-00000000", "names no single family")],
)
def test_a_family_that_is_not_there_is_named(copied, find, name, told):
    with pytest.raises(ExportError, match=told):
        build_plans(copied, name, PlanSettings(), find=find)


def test_plans_are_not_made_of_plans(copied, find):
    written = build_plans(copied, "tiny", PlanSettings(), alias="plans", find=find)
    with pytest.raises(ExportError, match="holds no ONNX graphs"):
        build_plans(copied, written.family, PlanSettings(), find=find)


def test_the_embedded_engine_leaves_plans_to_triton(copied, find):
    written = build_plans(copied, "tiny", PlanSettings(), find=find)
    catalog = read_repository(copied)
    assert written.family not in catalog.families
    assert len(catalog.families) == 1
    assert any("backend must be onnxruntime" in problem for problem in catalog.problems)


def test_the_gateway_knows_the_family_that_triton_tells_it_of(copied, find):
    written = build_plans(copied, "tiny", PlanSettings(ways=3), find=find)
    configs = configs_of(copied, written.family)
    catalog = read_catalog({config.name: config for config in configs.values()})
    assert catalog.problems == []
    family = catalog.families[written.family].family
    assert family.way_buckets == (1, 2, 4)
    assert family.graphs == {GraphRole(role) for role in configs}


def test_more_ways_than_the_family_takes_are_refused():
    assert within(3, (1, 2, 4, 8), "ways") == (1, 2, 4)
    assert within(1, (1, 2), "ways") == (1,)
    with pytest.raises(ExportError, match="at most 8 ways"):
        within(9, (1, 2, 4, 8), "ways")


def test_a_cast_comes_first_and_changes_nothing(copied):
    (path,) = copied.glob("*_features/1/model.onnx")
    plain = path.read_bytes()
    cast = with_cast_inputs(plain)
    assert onnx.load_model_from_string(cast).graph.node[0].op_type == "Cast"
    image = np.random.default_rng(0).integers(0, 256, (2, 40, 32, 3), dtype=np.uint8)
    first, second = (OnnxGraph(graph)({"image": image})["features"] for graph in (plain, cast))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda config: config.ClearField("backend"), "backend must be onnxruntime or tensorrt"),
        (
            lambda config: setattr(config.instance_group[0], "kind", 2),
            "needs instances of KIND_GPU",
        ),
        (
            lambda config: config.optimization.execution_accelerators.gpu_execution_accelerator.add(
                name="tensorrt"
            ),
            "a TensorRT plan takes none",
        ),
        (lambda config: setattr(config, "default_model_filename", "other"), "1/other: is missing"),
        (
            lambda config: setattr(
                config.parameters["fewseg.provenance"], "string_value", '{"tensorrt": "10.5.0"}'
            ),
            "does not say 'gpu'",
        ),
    ],
)
def test_the_check_names_what_is_wrong_with_a_plan(copied, find, change, told):
    written = build_plans(copied, "tiny", PlanSettings(), find=find)
    path = copied / f"{written.family}_features" / "config.pbtxt"
    config = from_text(path.read_text())
    change(config)
    path.write_text(to_text(config))
    problems = check(copied)
    assert any(told in problem for problem in problems), problems


def test_tensorrt_and_a_gpu_are_looked_for(module):
    def run(command, **options):
        assert command[0] == "nvidia-smi"
        return SimpleNamespace(stdout="NVIDIA H200, 9.0\nNVIDIA H200, 9.0\n")

    builder = find_builder(load={"tensorrt": module}.__getitem__, run=run)
    assert (builder.version, builder.gpu) == ("10.5.0", GPU)

    def no_module(name):
        raise ImportError("No module named 'tensorrt'")

    with pytest.raises(ExportError, match="tensorrt is not there"):
        find_builder(load=no_module, run=run)


@pytest.mark.parametrize(
    "trouble", [FileNotFoundError("nvidia-smi"), subprocess.CalledProcessError(9, "nvidia-smi")]
)
def test_a_machine_without_a_gpu_is_told_what_to_do(trouble, module):
    def run(command, **options):
        raise trouble

    with pytest.raises(ExportError, match=r"there is no GPU.*fewseg-export accelerate"):
        find_builder(load=lambda name: module, run=run)


def test_the_command_says_in_one_line_why_it_cannot(copied, monkeypatch):
    monkeypatch.setenv("PATH", str(copied))
    done = CliRunner().invoke(app, ["tensorrt", str(copied), "--family", "tiny"])
    assert done.exit_code == 1
    assert "needs an NVIDIA GPU and the tensorrt package" in done.output
    assert len(list_families(copied)) == 1


def test_the_axes_of_a_merge_graph_are_counted(tmp_path):
    family = write_tiny_repository(tmp_path, merge="judged")
    shapes = {}
    for role in ("merge", "decode"):
        config = from_text((tmp_path / f"{family}_{role}" / "config.pbtxt").read_text())
        guidance = config.parameters["fewseg.guidance"].string_value
        shapes[role] = {
            name: profile.most[1:]
            for name, profile in profiles(config, guidance, (1, 4), (1, 3)).items()
        }
    assert shapes["merge"] == {
        "prototypes": (3, 5, 8),
        "features": (8, 4, 4),
        "planes": (5, 32, 32),
        "validity": (3,),
    }
    assert shapes["decode"]["agreement"] == (3, 3)
    assert shapes["decode"]["prototypes"] == (3, 5, 8)
