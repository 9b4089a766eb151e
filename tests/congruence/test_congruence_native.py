# SPDX-License-Identifier: Apache-2.0
"""Graphs that take images at their own size compute the same on Triton and in the process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.methods.revolver import GuidedModel, GuidedNetwork
from export.repository import write_family
from export.revolver_family import revolver_family
from service.core.family import GraphRole
from service.core.ports import SilentTelemetry
from service.engines.embedded import EmbeddedEngine
from service.engines.triton import TritonEngine

#: Triton runs ONNX Runtime 1.19, the embedded engine a later one: equal but for rounding.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    torch.manual_seed(1)
    model = GuidedModel("tiny", channels=8, shared=True, buffers=False)
    network = GuidedNetwork(model, widths=(4, 4, 6, 6, 6)).eval()
    root = tmp_path_factory.mktemp("native")
    options = {"alias": "native", "provenance": {}, "max_pixels": 1 << 20}
    write_family(revolver_family(network=network, **options), root)
    return root


async def run_all(engine, family, height, width):
    """Every graph and ensemble on an image of that size; the support has another."""
    random = np.random.default_rng(height)
    image = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    support = random.integers(0, 256, (1, 70, 90, 3), dtype=np.uint8)
    planes = (random.random((1, 3, 70, 90)) > 0.7).astype(np.float32)
    shot = {"image": support, "planes": planes}
    encoded = await engine.run(family, GraphRole.SUPPORT_ENCODER, shot)
    features = await engine.run(family, GraphRole.FEATURES, {"image": image})
    projected = await engine.run(family, GraphRole.QUERY_FEATURES, features)
    handle = await engine.put_guidance(family, {"guidance": encoded["guidance"]})
    logits = await engine.run(family, GraphRole.DECODE, projected, guidance=handle)
    query = {"image": image, "guidance": encoded["guidance"]}
    together = await engine.run(family, GraphRole.QUERY_DECODER, query)
    await engine.drop(handle)
    return {**encoded, **features, **projected, **logits, "together": together["logits"]}


async def test_native_sizes_are_congruent(repository, serve_triton):
    server = serve_triton(repository)
    engines = [
        EmbeddedEngine(repository, telemetry=SilentTelemetry(), threads=1, workers=1),
        TritonEngine([server.grpc_address], telemetry=SilentTelemetry()),
    ]
    answers = []
    for engine in engines:
        (family,) = (await engine.discover()).families
        await engine.load(family)
        answers.append([await run_all(engine, family, *size) for size in ((33, 64), (130, 97))])
        await engine.close()
    for one, other in zip(*answers, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, **CLOSE, err_msg=name)
