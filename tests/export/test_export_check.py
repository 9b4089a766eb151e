# SPDX-License-Identifier: Apache-2.0
"""`fewseg-export check`: what is wrong with a repository, told without a server."""

import json
import shutil

import onnx
import pytest
from google.protobuf import text_format
from typer.testing import CliRunner

from export.check import check
from export.cli import app
from export.errors import RepositoryWriteError
from tests.conftest import ROOT
from tests.helpers.tiny_repository import read_config, write_tiny_repository
from tests.helpers.triton import batch_dynamically

POSITIONED = {"name": "prototypes", "merge": "mean", "ways": "ways", "positions": True}
GRAPHS = ("features", "query_features", "guide", "merge", "decode")
VARIANTS = {
    "plain": {},
    "rich": {"stack": True, "query_features": True, "extent": True, "letterbox": True},
    "stored": {"positions": True},
    "joint": {"merge": "joint"},
    "judged": {"merge": "judged"},
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A repository with families of several kinds, in which nothing is wrong."""
    root = tmp_path_factory.mktemp("sound")
    for alias, variant in VARIANTS.items():
        family = write_tiny_repository(root, alias, **variant)
        for role in GRAPHS:
            if (root / f"{family}_{role}").is_dir():
                batch_dynamically(root, f"{family}_{role}")
    return root


@pytest.fixture
def repository(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "repository")


@pytest.fixture
def family(repository):
    (name,) = (folder.name for folder in repository.glob("plain-*_guide"))
    return name.removesuffix("_guide")


def change_config(repository, model, change):
    config = read_config(repository / model)
    change(config)
    (repository / model / "config.pbtxt").write_text(text_format.MessageToString(config))


def change_graph(repository, model, change):
    path = repository / model / "1" / "model.onnx"
    graph = onnx.load(path)
    change(graph)
    onnx.save(graph, path)


def change_parameter(repository, family, key, value):
    """Changes a parameter of all models of a family."""
    for folder in repository.glob(f"{family}_*"):

        def change(config):
            config.parameters[f"fewseg.{key}"].string_value = value

        change_config(repository, folder.name, change)


def test_a_sound_repository_has_no_problems(sound):
    assert check(sound) == []


def test_the_repository_of_the_project_has_no_problems():
    assert check(ROOT / "model_repository") == []


def test_models_of_others_and_folders_in_the_making_are_left_alone(repository):
    for name in ("resnet", ".plain-00000000_guide"):
        (repository / name).mkdir()
        (repository / name / "config.pbtxt").write_text("whatever")
    assert check(repository) == []


def test_what_is_no_folder_is_no_repository(tmp_path):
    with pytest.raises(RepositoryWriteError, match="is not a folder"):
        check(tmp_path / "nothing")


def set_output_dims(config):
    config.output[0].dims[:] = [-1, -1]


def set_input_type(config):
    config.input[0].data_type = config.output[0].data_type + 1


def rename_input(config):
    config.input[0].name = "maps"


def rename_output(config):
    config.output[0].name = "guidance"


def unbatch(config):
    config.max_batch_size = 0


def let_the_queue_be(config):
    config.ClearField("dynamic_batching")


def ignore_deadlines(config):
    config.dynamic_batching.default_queue_policy.allow_timeout_override = False


def leave_the_queue_open(config):
    config.dynamic_batching.default_queue_policy.max_queue_size = 0


def warm_up_with_an_open_extent(config):
    sample = config.model_warmup.add(name="sample", batch_size=1)
    for tensor in config.input:
        sample.inputs[tensor.name].data_type = tensor.data_type
        sample.inputs[tensor.name].dims.extend(tensor.dims)


def warm_up_half(config):
    sample = config.model_warmup.add(name="sample", batch_size=99)
    sample.inputs["features"].data_type = config.input[0].data_type
    sample.inputs["features"].dims.extend([8, 4, 4])


def take_another_backend(config):
    config.backend = "pytorch"


def serve_another_version(config):
    config.version_policy.specific.versions.append(7)


def reshape(config):
    config.output[0].reshape.shape.extend([1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_output_dims, "'prototypes' is TYPE_FP32 [-1, 8] in the graph"),
        (set_input_type, "is TYPE_FP32 [8, 4, 4] in the graph"),
        (rename_input, "input 'maps' is missing in the graph"),
        (rename_output, "output 'guidance' is missing in the graph"),
        (unbatch, "max_batch_size must be at least 1"),
        (let_the_queue_be, "there is no dynamic_batching"),
        (ignore_deadlines, "a caller's deadline does not reach the queue"),
        (leave_the_queue_open, "the queue has no bound"),
        (warm_up_with_an_open_extent, "model_warmup 'sample': 'planes' is TYPE_FP32 [-1, 32, 32]"),
        (warm_up_half, "model_warmup 'sample': has no input 'planes'"),
        (warm_up_half, "model_warmup 'sample': batch_size must be 1 to max_batch_size"),
        (take_another_backend, "backend must be onnxruntime or tensorrt, not 'pytorch'"),
        (serve_another_version, "there is no version folder"),
        (reshape, "output 'prototypes' has a reshape"),
    ],
)
def test_a_wrong_config_is_named(repository, family, change, told):
    change_config(repository, f"{family}_guide", change)
    problems = check(repository)
    assert any(told in problem for problem in problems), problems
    assert all(problem.startswith(f"{family}_") for problem in problems)


def raise_ir(graph):
    graph.ir_version = 11


def raise_opset(graph):
    graph.opset_import[0].version = 22


def use_own_operators(graph):
    graph.opset_import.add(domain="my.operators", version=1)


def fix_the_batch(graph):
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def leave_a_channel_open(graph):
    graph.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "C"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (raise_ir, "has IR version 11; Triton 24.10 loads up to 10"),
        (raise_opset, "has opset 22; Triton 24.10 loads up to 21"),
        (use_own_operators, "uses operators of 'my.operators'"),
        (fix_the_batch, "its first axis, the batch, must be symbolic"),
        (leave_a_channel_open, "'prototypes' is TYPE_FP32 [-1, -1] in the graph"),
    ],
)
def test_a_wrong_graph_is_named(repository, family, change, told):
    change_graph(repository, f"{family}_guide", change)
    (problem,) = check(repository)
    assert problem.startswith(f"{family}_guide/1/model.onnx: ")
    assert told in problem


def test_an_input_may_be_narrower_than_in_the_graph(repository, family):
    def narrow(config):
        config.input[1].dims[0] = 2

    change_config(repository, f"{family}_guide", narrow)
    # The graph allows it; the ensemble still takes any number of planes.
    assert check(repository) == []


def test_a_file_that_is_no_graph_is_named(repository, family):
    (repository / f"{family}_decode" / "1" / "model.onnx").write_bytes(b"no graph")
    (repository / f"{family}_features" / "1" / "model.onnx").unlink()
    problems = "\n".join(check(repository))
    assert f"{family}_features/1/model.onnx: is missing" in problems
    assert f"{family}_decode/1/model.onnx: is no ONNX graph" in problems


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "2"),
        ("digest", "0" * 63),
        ("graphs", "guide,decode"),
        ("created", "yesterday"),
        ("input_size", "32"),
        ("input_size", "native"),
        ("image_resize", "cv2_letterbox"),
        ("mask_resize", "cv2_letterbox_nearest"),
        ("decision", "margin"),
        ("decision", "dice"),
        ("threshold", "nan"),
        ("way_buckets", "4,2"),
        ("shot_buckets", ""),
        ("provenance", "[]"),
        ("guidance", "[]"),
        ("guidance", json.dumps([{"name": "prototypes", "merge": "median", "ways": "ways"}])),
        ("guidance", json.dumps([{"name": "prototypes", "merge": "stack", "ways": "ways"}])),
        ("guidance", json.dumps([{"name": "other", "merge": "mean", "ways": "ways"}])),
        ("guidance", json.dumps([POSITIONED])),
        ("position_buckets", "8,16"),
        ("post_chain", json.dumps([{"op": "resize", "mode": "half_pixel", "target": "input"}])),
        ("post_chain", json.dumps([{"op": "twist", "target": "output"}])),
        ("max_pixels", "1000"),
        ("extent", "decode"),
        ("extent", "features"),
        ("extent", "guide,decode"),
    ],
)
def test_a_wrong_parameter_is_named(repository, family, key, value):
    change_parameter(repository, family, key, value)
    problems = check(repository)
    assert problems
    assert all(problem.startswith(f"{family}_") for problem in problems)
    named = ("fewseg." + key, "fewseg.image_resize", "fewseg.mask_resize")
    assert any(name in problem for problem in problems for name in named), problems


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("merge_inputs", "[]", "fewseg.merge_inputs must be a JSON list of different names"),
        ("merge_inputs", '["areas"]', "nothing makes its input 'areas'"),
        ("merge_judged", '["features"]', "fewseg.merge_inputs and fewseg.merge_judged name"),
        (
            "guidance",
            json.dumps([{"name": "likes", "merge": "graph", "ways": "none"}]),
            "_merge/config.pbtxt: fewseg.guidance names 'likes', no output",
        ),
        ("guidance", json.dumps([{"name": "x", "merge": "mean", "ways": "none"}]), "rule graph"),
    ],
)
def test_what_a_merge_graph_does_not_fit_is_named(repository, key, value, hint):
    (name,) = (folder.name for folder in repository.glob("judged-*_merge"))
    change_parameter(repository, name.removesuffix("_merge"), key, value)
    assert any(hint in problem for problem in check(repository)), check(repository)


def test_models_of_a_family_that_differ_are_named(repository, family):
    change_config(
        repository,
        f"{family}_guide",
        lambda config: setattr(config.parameters["fewseg.method"], "string_value", "other"),
    )
    assert any("fewseg.method differs" in problem for problem in check(repository))


def test_a_missing_model_is_named(repository, family):
    shutil.rmtree(repository / f"{family}_decode")
    problems = check(repository)
    assert f"{family}_decode: is missing, and fewseg.graphs names it" in problems
    told = f"{family}_query_decoder/config.pbtxt: step '{family}_decode': is no model"
    assert any(problem.startswith(told) for problem in problems)


def test_a_config_that_is_none_is_named(repository, family):
    (repository / f"{family}_guide" / "config.pbtxt").write_text("max_batch_size: eight")
    assert any(
        problem.startswith(f"{family}_guide/config.pbtxt: is no Triton model configuration")
        for problem in check(repository)
    )


def output_what_feeds(config):
    tensor = config.input[0]
    config.output.add(name="features", data_type=11, dims=[8, 4, 4])
    assert tensor.name == "image"


def forget_an_input(config):
    del config.ensemble_scheduling.step[1].input_map["prototypes"]


def take_from_nowhere(config):
    config.ensemble_scheduling.step[1].input_map["features"] = "elsewhere"


def make_twice(config):
    config.ensemble_scheduling.step[0].output_map["features"] = "image"


def declare_other_dims(config):
    config.input[0].dims[0] = 31


def batch_more(config):
    config.max_batch_size = 9


def leave_an_input_unused(config):
    config.input.add(name="spare", data_type=11, dims=[1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (output_what_feeds, "output 'features' also feeds a step"),
        (forget_an_input, "input_map and the step's inputs differ in 'prototypes'"),
        (take_from_nowhere, "no step makes tensor 'elsewhere'"),
        (make_twice, "tensor 'image' is made twice"),
        (declare_other_dims, "tensor 'image' is TYPE_UINT8 [31, 32, 3] where it comes from"),
        (batch_more, "its max_batch_size is smaller than the ensemble's"),
        (leave_an_input_unused, "no step takes input 'spare'"),
    ],
)
def test_a_wrong_ensemble_is_named(repository, family, change, told):
    change_config(repository, f"{family}_query_decoder", change)
    problems = check(repository)
    assert any(told in problem for problem in problems), problems
    assert all(problem.startswith(f"{family}_query_decoder/") for problem in problems)


def test_the_command_tells_problems_and_fails(repository, family):
    runner = CliRunner()
    fine = runner.invoke(app, ["check", str(repository)])
    assert (fine.exit_code, "Nothing is wrong" in fine.output) == (0, True)
    change_graph(repository, f"{family}_guide", raise_ir)
    wrong = runner.invoke(app, ["check", str(repository)])
    assert wrong.exit_code == 1
    assert f"{family}_guide/1/model.onnx: has IR version 11" in wrong.output
