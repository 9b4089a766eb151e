# SPDX-License-Identifier: Apache-2.0
"""Repositories that cannot be served, and what is said of them."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tritonclient.grpc.model_config_pb2 import TYPE_STRING, TYPE_UINT8, ModelWarmup

from service.core.errors import RepositoryError, UnavailableError
from service.core.family import GraphRole
from service.core.ports import SilentTelemetry
from service.engines.embedded import EmbeddedEngine
from tests.helpers.tiny_repository import read_config, write_model, write_tiny_repository


@pytest.fixture
async def engine(tmp_path):
    engine = EmbeddedEngine(tmp_path, telemetry=SilentTelemetry(), threads=1)
    yield engine
    await engine.close()


@pytest.fixture
def family(tmp_path):
    return write_tiny_repository(tmp_path)


def change_config(folder, change):
    config = read_config(folder)
    change(config)
    write_model(folder.parent, config)


def change_graph(folder, change):
    path = folder / "1" / "model.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)


async def refusal(engine, family):
    with pytest.raises(RepositoryError) as caught:
        await engine.load(family)
    assert engine.loaded == frozenset()
    assert caught.value.message.startswith(family)
    return caught.value


async def test_a_missing_repository_is_unavailable(tmp_path):
    engine = EmbeddedEngine(tmp_path / "nowhere", telemetry=SilentTelemetry())
    with pytest.raises(UnavailableError) as caught:
        await engine.discover()
    assert caught.value.reason == "REPOSITORY_UNREACHABLE"
    assert str(tmp_path) not in caught.value.message
    await engine.close()


async def test_an_empty_repository_holds_nothing(engine):
    found = await engine.discover()
    assert (found.families, found.problems) == ({}, ())


async def test_variants_of_families_are_discovered_and_load(tmp_path, engine):
    names = {
        write_tiny_repository(tmp_path, alias, binary=binary, stack=stack)
        for alias, binary, stack in [
            ("a", False, False),
            ("b", False, True),
            ("c", True, False),
            ("d", True, True),
        ]
    }
    found = await engine.discover()
    assert set(found.families) == names
    assert found.problems == ()
    for name in names:
        await engine.load(name)
    assert engine.loaded == names


async def test_a_missing_graph_file_is_a_problem(tmp_path, engine, family):
    (tmp_path / f"{family}_guide" / "1" / "model.onnx").unlink()
    found = await engine.discover()
    assert not found.families
    assert found.problems == (f"{family}_guide/1/model.onnx: is missing.",)


@pytest.mark.parametrize("role", ["decode", "query_decoder"])
async def test_a_missing_version_is_a_problem(tmp_path, engine, family, role):
    shutil.rmtree(tmp_path / f"{family}_{role}" / "1")
    found = await engine.discover()
    assert found.problems == (f"{family}_{role}/: holds no version folder such as 1/.",)


async def test_the_latest_version_is_served(tmp_path, engine, family):
    folder = tmp_path / f"{family}_features"
    shutil.copytree(folder / "1", folder / "10")
    (folder / "9").mkdir()
    (folder / "1" / "model.onnx").write_bytes(b"an old version that nobody reads")
    await engine.load(family)
    assert engine.loaded == {family}


async def test_a_version_policy_is_followed(tmp_path, engine, family):
    folder = tmp_path / f"{family}_features"
    (folder / "2").mkdir()
    change_config(folder, lambda config: config.version_policy.specific.versions.append(1))
    await engine.load(family)
    assert engine.loaded == {family}


async def test_an_unreadable_config_is_a_problem(tmp_path, engine, family):
    (tmp_path / f"{family}_guide" / "config.pbtxt").write_text("name: tiny {")
    found = await engine.discover()
    (problem,) = found.problems
    assert problem.startswith(f"{family}_guide/config.pbtxt: is not a Triton model config")
    assert not found.families


async def test_a_config_that_is_no_text_is_a_problem(tmp_path, engine, family):
    (tmp_path / f"{family}_guide" / "config.pbtxt").write_bytes(b"\xff\xfe")
    problems = (await engine.discover()).problems
    assert problems[0] == f"{family}_guide/config.pbtxt: is not UTF-8 text."


async def test_a_config_that_cannot_be_opened_is_a_problem(tmp_path, engine, family):
    path = tmp_path / f"{family}_guide" / "config.pbtxt"
    path.unlink()
    path.mkdir()
    problems = (await engine.discover()).problems
    assert problems[0] == f"{family}_guide/config.pbtxt: cannot be read: Is a directory."


async def test_a_folder_without_config_is_a_problem_if_it_is_named_like_ours(
    tmp_path, engine, family
):
    (tmp_path / f"{family}_decode" / "config.pbtxt").unlink()
    (tmp_path / "resnet" / "1").mkdir(parents=True)
    problems = (await engine.discover()).problems
    assert problems[0] == f"{family}_decode/config.pbtxt: is missing."
    assert not any("resnet" in problem for problem in problems)


async def test_a_config_must_name_its_folder(tmp_path, engine, family):
    (tmp_path / f"{family}_guide").rename(tmp_path / "guide")
    problems = (await engine.discover()).problems
    assert problems[0] == (
        f"guide/config.pbtxt: name is '{family}_guide'; it must be the folder's."
    )


async def test_folders_that_are_being_written_and_stray_files_are_ignored(tmp_path, engine, family):
    other = write_tiny_repository(tmp_path, "other")
    for folder in tmp_path.glob(f"{other}_*"):
        folder.rename(tmp_path / f".{folder.name}")
    (tmp_path / "README.md").write_text("notes")
    found = await engine.discover()
    assert set(found.families) == {family}
    assert found.problems == ()


async def test_a_backend_that_needs_triton_is_a_problem(tmp_path, engine, family):
    change_config(
        tmp_path / f"{family}_features", lambda config: setattr(config, "backend", "tensorrt")
    )
    (problem,) = (await engine.discover()).problems
    assert problem.startswith(f"{family}_features/config.pbtxt: backend must be onnxruntime")


async def test_an_unknown_family_does_not_load(engine, family):
    error = await refusal(engine, f"{family[:-1]}_")
    assert error.reason == "FAMILY_UNKNOWN"


async def test_a_truncated_graph_is_named_without_the_servers_path(tmp_path, engine, family):
    path = tmp_path / f"{family}_decode" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:200])
    error = await refusal(engine, family)
    assert error.reason == "GRAPH_INVALID"
    assert error.message.startswith(f"{family}_decode/1/model.onnx: ")
    assert str(tmp_path) not in error.message


@pytest.mark.parametrize(
    ("role", "change", "hint"),
    [
        ("features", lambda c: c.input[0].dims.__setitem__(0, 64), "'image' has dims"),
        ("features", lambda c: c.output[0].dims.__setitem__(1, -1), "'features' has dims"),
        ("features", lambda c: c.output[0].dims.append(1), "'features' has dims"),
        ("decode", lambda c: c.output[0].dims.__setitem__(0, 3), "'logits' has dims"),
        (
            "guide",
            lambda c: setattr(c.input[1], "data_type", TYPE_UINT8),
            "'planes' is tensor(float)",
        ),
        ("guide", lambda c: setattr(c.input[1], "name", "masks"), "input 'masks' is missing"),
        ("decode", lambda c: setattr(c.output[0], "name", "mask"), "output 'mask'"),
    ],
)
async def test_a_graph_must_be_what_its_config_says(tmp_path, engine, family, role, change, hint):
    change_config(tmp_path / f"{family}_{role}", change)
    error = await refusal(engine, family)
    assert error.reason == "GRAPH_MISMATCH"
    assert error.message.startswith(f"{family}_{role}/1/model.onnx: ")
    assert hint in error.message


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda c: c.output[0].reshape.shape.append(1), "'features' has a reshape"),
        (lambda c: setattr(c.output[0], "data_type", TYPE_STRING), "no numeric data_type"),
        (lambda c: c.output.append(c.output[0]), "needs a name of its own"),
    ],
)
async def test_a_tensor_that_no_family_may_have_is_refused(tmp_path, engine, family, change, hint):
    change_config(tmp_path / f"{family}_features", change)
    error = await refusal(engine, family)
    assert error.message.startswith(f"{family}_features/config.pbtxt: tensor 'features'")
    assert hint in error.message


def make_native(config):
    for key, value in (("input_size", "native"), ("image_resize", "none"), ("mask_resize", "none")):
        config.parameters[f"fewseg.{key}"].string_value = value


async def test_a_native_family_is_rehearsed_at_the_size_of_its_warm_up(tmp_path, engine, family):
    for folder in tmp_path.iterdir():
        change_config(folder, make_native)
    error = await refusal(engine, family)
    assert "tensor image must be [batch, 32, 32, 3], not [1, 128, 128, 3]" in error.message

    def warm_up(config):
        sample = config.model_warmup.add(name="plain", batch_size=1)
        sample.inputs["image"].CopyFrom(
            ModelWarmup.Input(data_type=TYPE_UINT8, dims=[32, 32, 3], zero_data=True)
        )

    change_config(tmp_path / f"{family}_features", warm_up)
    await engine.load(family)
    assert engine.loaded == {family}


async def test_decode_must_find_its_inputs_on_the_way(tmp_path, engine):
    family = write_tiny_repository(tmp_path, query_features=True)

    def rename(config):
        config.output[0].name = "features_again"

    folder = tmp_path / f"{family}_query_features"
    change_config(folder, rename)
    change_graph(folder, lambda graph: setattr(graph.output[0], "name", "features_again"))
    change_graph(folder, lambda graph: graph.node[0].output.__setitem__(0, "features_again"))
    change_config(
        tmp_path / f"{family}_query_decoder",
        lambda c: (
            c.ensemble_scheduling.step[1].output_map.update({"features_again": "query_maps"})
            or c.ensemble_scheduling.step[1].output_map.pop("query_maps")
        ),
    )
    error = await refusal(engine, family)
    assert error.message == (
        f"{family}_decode/config.pbtxt: takes 'query_maps', which no graph before it returns."
    )


async def test_an_input_may_narrow_an_open_extent(tmp_path, engine, family):
    for role, index in (("guide", 1), ("support_encoder", 1)):
        change_config(
            tmp_path / f"{family}_{role}", lambda c, i=index: c.input[i].dims.__setitem__(0, 2)
        )
    await engine.load(family)
    with pytest.raises(ValueError, match=r"tensor planes must be \[batch, 2, 32, 32\]"):
        await engine.run(
            family,
            GraphRole.SUPPORT_ENCODER,
            {
                "image": np.zeros((1, 32, 32, 3), np.uint8),
                "planes": np.zeros((1, 3, 32, 32), np.float32),
            },
        )


async def test_a_fixed_batch_is_refused(tmp_path, engine, family):
    def fix_batch(graph):
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    change_graph(tmp_path / f"{family}_features", fix_batch)
    error = await refusal(engine, family)
    assert "the batch, must be symbolic" in error.message


async def test_a_graph_that_fails_when_it_runs_is_refused(tmp_path, engine, family):
    def break_reshape(graph):
        (shape,) = (value for value in graph.initializer if value.name == "maps")
        shape.CopyFrom(numpy_helper.from_array(np.array([0, 0, 1, 5, 5], np.int64), "maps"))

    change_graph(tmp_path / f"{family}_decode", break_reshape)
    error = await refusal(engine, family)
    assert error.reason in ("GRAPH_INVALID", "GRAPH_MISMATCH")
    assert error.message.startswith(f"{family}_decode/")


async def test_logits_must_have_the_planes_that_the_class_handling_says(tmp_path, engine):
    family = write_tiny_repository(tmp_path)
    for role in ("decode", "features", "guide", "query_decoder", "support_encoder"):
        change_config(
            tmp_path / f"{family}_{role}",
            lambda config: [
                setattr(config.parameters[f"fewseg.{key}"], "string_value", value)
                for key, value in (
                    ("class_handling", "binary"),
                    ("decision", "margin"),
                    ("score", "sigmoid"),
                )
            ],
        )
    error = await refusal(engine, family)
    assert error.message == (
        f"{family}_decode/config.pbtxt: "
        "must return logits [batch, 1, shots or 1, h, w] for one way."
    )


def swap_steps(config):
    first, second = config.ensemble_scheduling.step
    steps = [type(first).FromString(step.SerializeToString()) for step in (second, first)]
    del config.ensemble_scheduling.step[:]
    config.ensemble_scheduling.step.extend(steps)


async def test_the_order_of_an_ensembles_steps_does_not_matter(tmp_path, engine, family):
    change_config(tmp_path / f"{family}_query_decoder", swap_steps)
    await engine.load(family)
    outputs = await engine.run(
        family,
        GraphRole.QUERY_DECODER,
        {
            "image": np.zeros((1, 32, 32, 3), np.uint8),
            "prototypes": np.ones((1, 2, 8), np.float32),
        },
    )
    assert outputs["logits"].shape == (1, 2, 1, 4, 4)


def edit_step(index, field, key, value):
    def change(config):
        mapping = getattr(config.ensemble_scheduling.step[index], field)
        if value is None:
            del mapping[key]
        else:
            mapping[key] = value

    return change


def expose_features(config):
    config.output.add(name="features", data_type=config.output[0].data_type, dims=[8, 4, 4])


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (edit_step(1, "input_map", "features", "maps"), "'maps' before it is needed"),
        (edit_step(1, "input_map", "features", None), "input_map key 'features' is missing"),
        (edit_step(1, "input_map", "planes", "image"), "input_map key 'planes' is no input"),
        (edit_step(0, "output_map", "maps", "maps"), "output_map key 'maps' is no output"),
        (edit_step(0, "output_map", "features", "image"), "'image' is made twice"),
        (edit_step(1, "output_map", "logits", "scores"), "no step makes output 'logits'"),
        (edit_step(1, "input_map", "features", "image"), "'image' is uint8"),
        (expose_features, "output 'features' also feeds a step"),
        (
            lambda c: setattr(c.ensemble_scheduling.step[0], "model_name", "resnet"),
            "step 'resnet' is no graph of this family",
        ),
        (lambda c: setattr(c, "max_batch_size", 64), "max_batch_size is larger"),
        (lambda c: c.output[0].dims.__setitem__(2, 5), "tensor 'logits' is float32"),
        (
            lambda c: c.input.add(name="extra", data_type=c.output[0].data_type, dims=[1]),
            "no step takes input 'extra'",
        ),
    ],
)
async def test_an_ensemble_that_does_not_fit_is_refused(tmp_path, engine, family, change, hint):
    change_config(tmp_path / f"{family}_query_decoder", change)
    error = await refusal(engine, family)
    assert error.reason == "ENSEMBLE_INVALID"
    assert error.message.startswith(f"{family}_query_decoder/config.pbtxt: ")
    assert hint in error.message
