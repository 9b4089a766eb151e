# SPDX-License-Identifier: Apache-2.0
"""Families with a ``merge`` graph, as their configs describe them."""

import json

import pytest

from service.core.family import GraphRole, GuidanceTensor, MergeRule, WayAxis
from service.engines.manifest import read_catalog
from tests.helpers.tiny_repository import read_config, write_tiny_repository


def configs_of(root, mode):
    write_tiny_repository(root, merge=mode)
    return {folder.name: read_config(folder) for folder in root.iterdir()}


def set_everywhere(configs, key, value):
    for config in configs.values():
        if value is None:
            del config.parameters[f"fewseg.{key}"]
        else:
            config.parameters[f"fewseg.{key}"].string_value = value


def problems(configs):
    catalog = read_catalog(configs)
    assert not catalog.families
    return " ".join(catalog.problems)


def test_a_graph_that_merges_a_whole_set(tmp_path):
    ((_, models),) = read_catalog(configs_of(tmp_path, "joint")).families.items()
    family = models.family
    assert GraphRole.MERGE in models.configs
    assert family.guidance == (
        GuidanceTensor("merged", MergeRule.GRAPH, WayAxis.BACKGROUND_AND_WAYS),
    )
    assert (family.merge_inputs, family.merge_judged) == (("prototypes", "planes"), ())
    assert family.most_shots == 16


def test_a_graph_that_judges_each_shot_under_each(tmp_path):
    ((_, models),) = read_catalog(configs_of(tmp_path, "judged")).families.items()
    assert models.family.guidance[1] == GuidanceTensor(
        "agreement", MergeRule.GRAPH, WayAxis.NONE, validity="validity"
    )
    assert models.family.merge_inputs == ("prototypes",)
    assert models.family.merge_judged == ("features", "planes")


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("merge_inputs", None, "fewseg.merge_inputs must be there for a merge graph"),
        ("merge_inputs", '["prototypes", "planes"]', "fewseg.merge_judged names a tensor of"),
        ("merge_inputs", '"prototypes"', "list of different names"),
        ("merge_inputs", '["prototypes", "areas"]', "nothing makes its input 'areas'"),
        ("merge_judged", '["features"]', "its inputs are not 'validity' and those that"),
        (
            "guidance",
            json.dumps([{"name": "agreement", "merge": "graph", "ways": "none"}]),
            "'validity' where shots are judged",
        ),
        (
            "guidance",
            json.dumps([{"name": "prototypes", "merge": "mean", "ways": "ways"}]),
            "a tensor of merge rule graph",
        ),
        (
            "guidance",
            json.dumps([{"name": "likes", "merge": "graph", "ways": "none", "validity": "v"}]),
            "_merge/config.pbtxt: fewseg.guidance names 'likes', which is no output",
        ),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(tmp_path, key, value, hint):
    configs = configs_of(tmp_path, "judged")
    set_everywhere(configs, key, value)
    assert hint in problems(configs)


def test_maps_of_a_native_size_cannot_be_stacked(tmp_path):
    for mode, refused in (("joint", True), ("judged", False)):
        configs = configs_of(tmp_path / mode, mode)
        for key in ("image_resize", "mask_resize"):
            set_everywhere(configs, key, "none")
        set_everywhere(configs, "input_size", "native")
        told = " ".join(read_catalog(configs).problems)
        assert ("maps of a native input size cannot be stacked" in told) == refused
