# SPDX-License-Identifier: Apache-2.0
"""From ``fewseg.*`` parameters to families."""

import json
from datetime import UTC, datetime

import pytest

from service.core.family import (
    ClassHandling,
    Decision,
    FeatureReuse,
    GraphRole,
    GuidanceTensor,
    ImageResize,
    InputDtype,
    MaskResize,
    MergeRule,
    ModelFamily,
    PostOp,
    PostStep,
    PostTarget,
    ResizeMode,
    ScoreMeaning,
    VoidRule,
    WayAxis,
)
from service.core.types import Size
from service.engines.manifest import read_catalog
from tests.helpers.tiny_repository import read_config, write_tiny_repository


@pytest.fixture
def configs(tmp_path):
    write_tiny_repository(tmp_path, "tiny")
    return {folder.name: read_config(folder) for folder in tmp_path.iterdir()}


def set_everywhere(configs, key, value):
    for config in configs.values():
        config.parameters[f"fewseg.{key}"].string_value = value


def only_problem(configs):
    catalog = read_catalog(configs)
    assert not catalog.families
    (problem,) = catalog.problems
    return problem


def test_every_parameter_reaches_the_family(configs):
    catalog = read_catalog(configs)
    assert catalog.problems == []
    ((name, models),) = catalog.families.items()
    family = models.family
    assert family == ModelFamily(
        name=name,
        alias="tiny",
        method="panet",
        digest=family.digest,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        graphs=frozenset(GraphRole) - {GraphRole.MERGE, GraphRole.QUERY_FEATURES},
        input_size=Size(32, 32),
        input_dtype=InputDtype.UINT8,
        image_resize=ImageResize.PIL_BILINEAR,
        mask_resize=MaskResize.PIL_NEAREST,
        class_handling=ClassHandling.MULTIWAY,
        needs_background=True,
        void=VoidRule.BACKGROUND,
        guidance=(
            GuidanceTensor(
                "prototypes",
                MergeRule.WEIGHTED_MEAN,
                WayAxis.BACKGROUND_AND_WAYS,
                weight="weights",
            ),
        ),
        post_chain=(
            PostStep(PostOp.RESIZE, PostTarget.INPUT, ResizeMode.HALF_PIXEL),
            PostStep(PostOp.RESIZE, PostTarget.OUTPUT, ResizeMode.HALF_PIXEL),
        ),
        decision=Decision.ARGMAX,
        threshold=0.0,
        score=ScoreMeaning.SOFTMAX,
        way_buckets=(1, 2, 4, 8),
        shot_buckets=(1, 2, 4, 8, 16),
        feature_reuse=FeatureReuse.ALWAYS,
        provenance={"exporter": "tests", "license": "Apache-2.0"},
    )
    assert family.name == f"tiny-{family.digest[:8]}"


def test_a_native_family_with_a_deconvolution_is_read(tmp_path):
    name = write_tiny_repository(tmp_path, binary=True)
    configs = {folder.name: read_config(folder) for folder in tmp_path.iterdir()}
    set_everywhere(configs, "input_size", "native")
    set_everywhere(configs, "image_resize", "none")
    set_everywhere(configs, "mask_resize", "none")
    set_everywhere(configs, "input_dtype", "uint16_8.8")
    steps = [{"op": "deconvolve", "factor": 32}, {"op": "crop", "target": "output"}]
    set_everywhere(configs, "post_chain", json.dumps(steps))
    family = read_catalog(configs).families[name].family
    assert family.input_size is None
    assert family.input_dtype is InputDtype.UINT16_FIXED
    assert family.network_size(Size(7, 9)) == Size(7, 9)
    assert family.post_chain == (
        PostStep(PostOp.DECONVOLVE, factor=32),
        PostStep(PostOp.CROP, PostTarget.OUTPUT),
    )


def test_a_family_names_the_graphs_that_take_the_extent(tmp_path):
    name = write_tiny_repository(tmp_path, extent=True, query_features=True)
    configs = {folder.name: read_config(folder) for folder in tmp_path.iterdir()}
    family = read_catalog(configs).families[name].family
    assert family.extent_roles == {GraphRole.DECODE, GraphRole.GUIDE, GraphRole.QUERY_FEATURES}
    assert family.takes_extent(GraphRole.SUPPORT_ENCODER)
    assert family.takes_extent(GraphRole.QUERY_DECODER)
    assert not family.takes_extent(GraphRole.FEATURES)
    set_everywhere(configs, "extent", "decode,query_features")
    assert only_problem(configs).startswith(f"{name}_guide/config.pbtxt: must have an input")


def test_a_native_family_may_bound_its_images(tmp_path):
    name = write_tiny_repository(tmp_path)
    configs = {folder.name: read_config(folder) for folder in tmp_path.iterdir()}
    set_everywhere(configs, "min_side", "33")
    set_everywhere(configs, "max_pixels", "1048576")
    assert "fewseg.min_side belongs to a native input size" in only_problem(configs)
    for key, value in (("input_size", "native"), ("image_resize", "none"), ("mask_resize", "none")):
        set_everywhere(configs, key, value)
    family = read_catalog(configs).families[name].family
    assert (family.min_side, family.max_pixels) == (33, 1048576)
    set_everywhere(configs, "max_pixels", "many")
    assert "fewseg.max_pixels must be a positive integer, not 'many'" in only_problem(configs)


RESIZE_TO_OUTPUT = {"op": "resize", "mode": "half_pixel", "target": "output"}
PROTOTYPES = {"name": "prototypes", "ways": "ways", "merge": "mean"}
POSITIONS = {**PROTOTYPES, "merge": "stack", "validity": "validity", "positions": True}


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("schema", "2", "this version reads '1'"),
        ("alias", "Tiny", "lower-case"),
        ("digest", "abc", "64 hexadecimal digits"),
        ("digest", "0" * 64, "fewseg.family must be"),
        ("created", "2026-01-01 00:00:00", "RFC 3339"),
        ("created", "2026-13-01T00:00:00Z", "RFC 3339"),
        ("created", "2026-01-01T00:00:00+02:00", "RFC 3339"),
        ("input_size", "32", "HxW or native"),
        ("input_size", "0x32", "HxW or native"),
        ("input_size", "native", "fewseg.image_resize"),
        ("mask_resize", "none", "native"),
        ("input_dtype", "float32", "uint8, uint16_8.8"),
        ("image_resize", "cv2_letterbox", "fewseg.input_dtype must be uint16_8.8"),
        ("mask_resize", "cv2_letterbox_nearest", "must go with image_resize"),
        ("class_handling", "binary", "fewseg.decision"),
        ("score", "sigmoid", "softmax"),
        ("needs_background", "True", "true or false"),
        ("threshold", "nan", "decimal"),
        ("threshold", "1e999", "finite"),
        ("extent", "features", "must name some of decode, guide, query_features"),
        ("extent", "guide,decode", "sorted"),
        ("way_buckets", "1,1,2", "ascending"),
        ("way_buckets", "0,1", "ascending"),
        ("shot_buckets", "1,", "ascending"),
        ("graphs", "guide,features", "sorted"),
        ("graphs", "decode,features,guide,query_decoder", "support_encoder"),
        (
            "graphs",
            "decode,features,guide,merge,query_decoder,support_encoder",
            "fewseg.guidance must have a tensor of merge rule graph",
        ),
        ("merge_inputs", '["planes"]', "merge graph"),
        ("merge_inputs", '["planes", "planes"]', "different names"),
        ("guidance", "[]", "at least one"),
        ("guidance", "{", "not JSON"),
        ("guidance", '["prototypes"]', "[0] must be an object"),
        ("guidance", json.dumps([{**PROTOTYPES, "merge": "merge"}]), "mean, weighted_mean"),
        ("guidance", json.dumps([{**PROTOTYPES, "merge": "weighted_mean"}]), "'weight'"),
        ("guidance", json.dumps([{**PROTOTYPES, "merge": "stack"}]), "'validity'"),
        ("guidance", json.dumps([{**PROTOTYPES, "validity": "v"}]), "'validity'"),
        ("guidance", json.dumps([{**PROTOTYPES, "positions": True}]), "merge rule stack"),
        ("guidance", json.dumps([{**PROTOTYPES, "positions": 1}]), "true or false"),
        ("guidance", json.dumps([POSITIONS]), "fewseg.position_buckets must be there"),
        ("position_buckets", "8,16", "only then"),
        ("position_buckets", "8,8", "ascending"),
        ("guidance", json.dumps([{**PROTOTYPES, "axis": 1}]), "unknown members: axis"),
        ("guidance", json.dumps([PROTOTYPES, PROTOTYPES]), "twice"),
        ("guidance", json.dumps([{"name": "prototypes", "merge": "mean"}]), "lacks 'ways'"),
        ("post_chain", json.dumps([RESIZE_TO_OUTPUT] * 2), "last step"),
        ("post_chain", json.dumps([{**RESIZE_TO_OUTPUT, "target": "input"}]), "last step"),
        ("post_chain", json.dumps([{"op": "blur"}, RESIZE_TO_OUTPUT]), "[0] 'op'"),
        ("post_chain", json.dumps([{"op": "deconvolve"}, RESIZE_TO_OUTPUT]), "'factor'"),
        ("provenance", '{"epochs": 3}', "object of strings"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(configs, key, value, hint):
    set_everywhere(configs, key, value)
    catalog = read_catalog(configs)
    assert not catalog.families
    for problem in catalog.problems:
        assert "/config.pbtxt: fewseg." in problem
        assert hint in problem
    assert f"fewseg.{key}" in problem or hint.startswith("fewseg.")


@pytest.mark.parametrize("key", ["void", "provenance", "shot_buckets"])
def test_a_missing_key_is_named_with_its_file(configs, key):
    (model,) = (model for model in configs if model.endswith("_decode"))
    del configs[model].parameters[f"fewseg.{key}"]
    assert f"{model}/config.pbtxt: fewseg.{key} is missing." in read_catalog(configs).problems


def test_a_refused_model_is_not_called_missing_as_well(configs):
    (model,) = (model for model in configs if model.endswith("_decode"))
    del configs[model].parameters["fewseg.void"]
    assert only_problem(configs) == f"{model}/config.pbtxt: fewseg.void is missing."


def test_a_model_whose_config_is_broken_takes_its_family_along_in_silence(tmp_path):
    good = write_tiny_repository(tmp_path, "good")
    bad = write_tiny_repository(tmp_path, "bad")
    configs = {folder.name: read_config(folder) for folder in tmp_path.iterdir()}
    del configs[f"{bad}_guide"]
    catalog = read_catalog(configs, broken=[f"{bad}_guide"])
    assert (set(catalog.families), catalog.problems) == ({good}, [])


def test_models_of_a_family_must_agree(configs):
    (model,) = (model for model in configs if model.endswith("_guide"))
    configs[model].parameters["fewseg.threshold"].string_value = "0.5"
    problem = only_problem(configs)
    assert problem.startswith(f"{model}/config.pbtxt: fewseg.threshold differs")


def test_a_missing_model_makes_the_family_incomplete(configs):
    (model,) = (model for model in configs if model.endswith("_query_decoder"))
    del configs[model]
    assert only_problem(configs).startswith(f"{model}/config.pbtxt: is missing")


def test_a_model_that_the_family_does_not_name_makes_it_inconsistent(tmp_path):
    name = write_tiny_repository(tmp_path, query_features=True)
    configs = {folder.name: read_config(folder) for folder in tmp_path.iterdir()}
    set_everywhere(configs, "graphs", "decode,features,guide,query_decoder,support_encoder")
    assert only_problem(configs) == (
        f"{name}_query_features/config.pbtxt: fewseg.graphs does not name this role."
    )


def test_a_model_must_be_called_after_its_family_and_role(configs):
    (model,) = (model for model in configs if model.endswith("_guide"))
    configs[model].parameters["fewseg.role"].string_value = "decode"
    problems = read_catalog(configs).problems
    assert f"{model}/config.pbtxt: fewseg.role" in problems[0]


def test_guidance_must_be_what_the_graphs_exchange(configs):
    (model,) = (model for model in configs if model.endswith("_decode"))
    tensor = {**PROTOTYPES, "merge": "stack", "validity": "validity"}
    set_everywhere(configs, "guidance", json.dumps([tensor]))
    assert only_problem(configs) == (
        f"{model}/config.pbtxt: fewseg.guidance names 'validity', which is no input."
    )


def test_guidance_must_come_from_the_guide(configs):
    (model,) = (model for model in configs if model.endswith("_guide"))
    tensor = {**PROTOTYPES, "merge": "weighted_mean", "weight": "areas"}
    set_everywhere(configs, "guidance", json.dumps([tensor]))
    assert only_problem(configs) == (
        f"{model}/config.pbtxt: fewseg.guidance names 'areas', which is no output."
    )


def test_a_model_without_batching_is_refused(configs):
    (model,) = (model for model in configs if model.endswith("_features"))
    configs[model].max_batch_size = 0
    assert only_problem(configs) == f"{model}/config.pbtxt: max_batch_size must be at least 1."


def test_models_of_others_are_left_alone(configs):
    (model,) = (model for model in configs if model.endswith("_features"))
    other = type(configs[model])(name="resnet")
    other.parameters["owner"].string_value = "somebody else"
    catalog = read_catalog({**configs, "resnet": other})
    assert catalog.problems == []
    assert len(catalog.families) == 1


def test_a_broken_family_does_not_hide_a_good_one(tmp_path):
    good = write_tiny_repository(tmp_path, "good")
    bad = write_tiny_repository(tmp_path, "bad")
    configs = {folder.name: read_config(folder) for folder in tmp_path.iterdir()}
    del configs[f"{bad}_guide"]
    catalog = read_catalog(configs)
    assert set(catalog.families) == {good}
    assert len(catalog.problems) == 1
