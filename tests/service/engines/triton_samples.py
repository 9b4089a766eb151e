# SPDX-License-Identifier: Apache-2.0
"""Inputs for the tiny families, and engines over them."""

from contextlib import asynccontextmanager

import numpy as np

from service.core.family import GraphRole
from service.core.ports import SilentTelemetry
from service.engines.embedded import EmbeddedEngine
from service.engines.triton import TritonEngine
from service.engines.triton_options import TritonOptions

#: Of the graph files of ``write_tiny_repository``.
VARIANTS = {
    "multiway": {},
    "stack": {"stack": True},
    "binary": {"binary": True},
    "binary-stack": {"binary": True, "stack": True},
    "query-features": {"query_features": True},
}

#: Triton runs ONNX Runtime 1.19, the embedded engine a later one: equal but for rounding.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


class RunCounter(SilentTelemetry):
    def __init__(self):
        self.runs = []

    def graph_run(self, role):
        self.runs.append(role)


@asynccontextmanager
async def triton_engine(*servers, telemetry=None, **options):
    """A Triton engine over servers or addresses."""
    addresses = [getattr(server, "grpc_address", server) for server in servers]
    engine = TritonEngine(
        addresses, telemetry=telemetry or SilentTelemetry(), options=TritonOptions(**options)
    )
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def embedded_engine(repository, telemetry=None):
    engine = EmbeddedEngine(
        repository, telemetry=telemetry or SilentTelemetry(), threads=1, workers=1
    )
    try:
        yield engine
    finally:
        await engine.close()


def photograph(seed=0, batch=1, side=32):
    return np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)


def planes(batch=1, ways=1):
    values = np.zeros((batch, 1 + ways, 32, 32), np.float32)
    for way in range(1, 1 + ways):
        values[:, way, 8 * way : 8 * way + 6, 4:24] = 1
    values[:, 0] = 1 - values[:, 1:].sum(axis=1)
    return values


def prototypes(seed=1, batch=1, ways=1):
    return np.random.default_rng(seed).normal(size=(batch, 1 + ways, 8)).astype(np.float32)


def stacked(seed=1, batch=1, ways=1, shots=2):
    """Guidance of a ``stack`` family."""
    values = np.random.default_rng(seed).normal(size=(batch, shots, 1 + ways, 8))
    return {
        "prototypes": values.astype(np.float32),
        "validity": np.ones((batch, shots), np.float32),
    }


async def run_all_roles(engine, family, batch=1, ways=2):
    """Runs every graph and ensemble of a family, each on what the ones before it returned.

    Returns:
        Outputs by role.
    """
    image, marked = photograph(batch=batch), planes(batch, ways)
    name = family.name
    outputs = {}
    features = outputs["features"] = await engine.run(name, GraphRole.FEATURES, {"image": image})
    shot = outputs["guide"] = await engine.run(
        name, GraphRole.GUIDE, {**features, "planes": marked}
    )
    outputs["support_encoder"] = await engine.run(
        name, GraphRole.SUPPORT_ENCODER, {"image": image, "planes": marked}
    )
    query = features
    if GraphRole.QUERY_FEATURES in family.graphs:
        query = outputs["query_features"] = await engine.run(
            name, GraphRole.QUERY_FEATURES, features
        )
    guidance = {}
    for tensor in family.guidance:
        values = shot[tensor.name]
        guidance[tensor.name] = values[:, None] if tensor.validity else values
        if tensor.validity:
            guidance[tensor.validity] = np.ones((batch, 1), np.float32)
    outputs["decode"] = await engine.run(name, GraphRole.DECODE, {**query, **guidance})
    outputs["query_decoder"] = await engine.run(
        name, GraphRole.QUERY_DECODER, {"image": image, **guidance}
    )
    return outputs
