"""What the exporter writes into configs is what the service reads out of them."""

from __future__ import annotations

import pytest

from export import canet_family, sgone_family
from export.configs import model_configs
from export.methods.canet import CanetNetwork
from export.methods.revolver import GuidedModel, GuidedNetwork
from export.methods.sgone import SgOneNetwork
from export.revolver_family import revolver_family
from service.core.family import (
    ClassHandling,
    Decision,
    GraphRole,
    MergeRule,
    ModelFamily,
    ScoreMeaning,
    VoidRule,
    WayAxis,
)
from service.core.types import Size
from service.engines.manifest import read_catalog

NATIVE = {"alias": "m", "provenance": {}, "max_pixels": 1 << 20}


def revolver(shared):
    model = GuidedModel("tiny", channels=8, shared=shared, buffers=False)
    network = GuidedNetwork(model, widths=(4, 4, 6, 6, 6))
    return revolver_family(network=network, **NATIVE)


def sgone(merge):
    return sgone_family.sgone_family(
        network=SgOneNetwork(), merge=sgone_family.ShotMerge(merge), **NATIVE
    )


def canet(merge):
    network = CanetNetwork().eval()
    return canet_family.canet_family(
        alias="m",
        network=network,
        size=(65, 97),
        provenance={},
        merge=canet_family.ShotMerge(merge),
    )


def as_read(family) -> ModelFamily:
    configs = {config.name: config for config in model_configs(family).values()}
    catalog = read_catalog(configs)
    assert catalog.problems == []
    return catalog.families[family.name].family


@pytest.mark.parametrize(
    ("family", "handling", "decision", "score"),
    [
        (lambda: revolver(True), "multiway", "argmax", "softmax"),
        (lambda: revolver(False), "binary", "margin", "sigmoid"),
        (lambda: sgone("mean"), "binary", "margin", "sigmoid"),
        (lambda: sgone("any"), "binary", "any_shot", "sigmoid"),
        (lambda: canet("mean"), "binary", "margin", "sigmoid"),
        (lambda: canet("probability"), "binary", "margin", "linear"),
    ],
    ids=["shared", "unshared", "sgone", "sgone-any", "canet", "canet-probability"],
)
def test_every_family_is_read_as_it_was_meant(family, handling, decision, score):
    read = as_read(family())
    assert read.class_handling is ClassHandling(handling)
    assert read.decision is Decision(decision)
    assert read.score is ScoreMeaning(score)
    assert not read.needs_background


def test_shots_that_decide_alone_are_stacked():
    for family in (sgone("any"), canet("probability")):
        (tensor,) = as_read(family).guidance
        assert (tensor.merge, tensor.ways) == (MergeRule.STACK, WayAxis.WAYS)
        assert tensor.validity == "validity"
    (tensor,) = as_read(revolver(True)).guidance
    assert (tensor.merge, tensor.ways) == (MergeRule.WEIGHTED_MEAN, WayAxis.BACKGROUND_AND_WAYS)


def test_native_sizes_are_open_in_the_configs_and_bounded_in_the_parameters():
    family = revolver(True)
    read = as_read(family)
    assert (read.input_size, read.min_side, read.max_pixels) == (None, 33, 1 << 20)
    assert read.void is VoidRule.UNKNOWN
    configs = model_configs(family)
    assert list(configs["features"].input[0].dims) == [-1, -1, 3]
    assert list(configs["features"].output[0].dims) == [8, -1, -1]
    assert list(configs["guide"].model_warmup[0].inputs["planes"].dims) == [2, 128, 128]
    assert as_read(canet("mean")).input_size == Size(65, 97)
    assert GraphRole.QUERY_FEATURES in as_read(canet("mean")).graphs
