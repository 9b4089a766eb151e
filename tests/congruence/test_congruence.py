# SPDX-License-Identifier: Apache-2.0
"""The service answers the same whichever engine runs the repository."""

import asyncio
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
from congruence_script import CLOSE, ENGINES, carry_out_all, client, compare

from fewseg import Box, Support
from fewseg.results import SegmentResult, Task
from tests.conftest import ROOT
from tests.helpers.gateway import RED, png, scene
from tests.helpers.tiny_repository import write_tiny_repository
from tests.helpers.triton import batch_dynamically, shared_memory_files, states, statistics
from triton_local import LocalTriton

QUERY = scene((RED, (40, 16, 64, 48)), seed=9)
VARIANTS = {
    "multiway": {},
    "stack": {"stack": True},
    "binary": {"binary": True},
    "binary-stack": {"binary": True, "stack": True},
    "vote": {"binary": True, "stack": True, "vote": True},
    "query-features": {"query_features": True},
    "extent": {"query_features": True, "extent": True},
    "letterbox": {"letterbox": True},
    "positions": {"positions": True, "size": 64},
    "merge": {"merge": "joint"},
    "merge-judged": {"merge": "judged"},
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A family of each kind, and those that come with the project."""
    root = tmp_path_factory.mktemp("models")
    for alias, variant in VARIANTS.items():
        write_tiny_repository(root, alias, **variant)
    for folder in sorted((ROOT / "model_repository").glob("*_*")):
        shutil.copytree(folder, root / folder.name)
    return root


@pytest.fixture(scope="module")
def triton(repository, triton_environment):
    with LocalTriton(repository, environment=triton_environment) as running:
        yield running


def aliases():
    shipped = {folder.name.rpartition("-")[0] for folder in (ROOT / "model_repository").glob("*_*")}
    return [*VARIANTS, *sorted(shipped)]


@pytest.fixture(scope="module")
def rounds(repository, triton):
    """What each engine says to each model's round of operations."""
    return {engine: carry_out_all(engine, repository, triton, aliases()) for engine in ENGINES}


@pytest.mark.parametrize("alias", aliases())
def test_every_operation_answers_the_same_with_both_engines(rounds, alias):
    embedded, served = rounds["embedded"][alias], rounds["triton"][alias]
    assert embedded["server"].engine == "embedded"
    assert served["server"].engine == "triton"
    assert isinstance(served["register"], Task)
    assert isinstance(served["segment 0"], SegmentResult)
    assert served["segment 0"].mask.any()
    assert served["gone"][0] == "NOT_FOUND"
    assert served["segment cross-guided"].mask.any()
    compare(embedded, served)


async def test_guidance_in_shared_memory_makes_no_difference(tmp_path, serve_triton):
    # Half a megabyte: 256 shots of 65 planes of 8 numbers.
    write_tiny_repository(tmp_path, stack=True, way_buckets=[64], shot_buckets=[256])
    triton = serve_triton(tmp_path)
    support = Support(png(scene((RED, (8, 8, 32, 32)))), Box(8, 8, 32, 32, "red"))
    answers, regions = [], []
    for mode in ("on", "off"):
        async with client("triton", tmp_path, triton, triton_shared_memory=mode) as connected:
            await connected.register(["red"], [support], task_id="large")
            answers.append(await connected.segment("large", png(QUERY)))
            regions.append(len(shared_memory_files()))
    assert regions == [1, 0]
    assert answers[0].mask.any()
    assert np.array_equal(answers[0].mask, answers[1].mask)
    assert not shared_memory_files()


async def test_concurrent_queries_of_different_tasks_share_executions(tmp_path, serve_triton):
    tasks, queries = 8, 4
    family = write_tiny_repository(tmp_path)
    for role in ("features", "guide", "decode"):
        batch_dynamically(tmp_path, f"{family}_{role}", delay_microseconds=20_000)
    triton = serve_triton(tmp_path)
    pictures = [
        png(scene((RED, (4 * n, 16, 4 * n + 24, 48)), seed=100 + n)) for n in range(queries)
    ]
    async with client("triton", tmp_path, triton, slots=32) as connected:
        for number in range(tasks):
            box = (number, 8, number + 24, 32)
            support = Support(png(scene((RED, box), seed=number)), Box(*box, "red"))
            await connected.register(["red"], [support], task_id=f"task-{number}")

        async def ask(number, picture):
            return await connected.segment(f"task-{number}", picture, probabilities=True)

        pairs = [(number, picture) for number in range(tasks) for picture in pictures]
        alone = [await ask(*pair) for pair in pairs]
        before = statistics(triton, f"{family}_decode")
        together = await asyncio.gather(*(ask(*pair) for pair in pairs))
        after = statistics(triton, f"{family}_decode")
    asked, executions = after[0] - before[0], after[1] - before[1]
    assert asked == len(pairs)
    assert executions <= asked / 2
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.mask, other.mask)
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=CLOSE)


async def test_the_gateway_loads_what_it_serves_and_nothing_else(tmp_path, serve_triton):
    old = write_tiny_repository(tmp_path)
    new = write_tiny_repository(tmp_path, seed=1, created=datetime(2026, 3, 1, tzinfo=UTC))
    triton = serve_triton(tmp_path)
    async with client("triton", tmp_path, triton) as connected:
        (model,) = await connected.models()
        assert model.family == new
        ready = {name for name, state in states(triton).items() if state == "READY"}
    assert all(name.startswith(new) for name in ready)
    assert not any(name.startswith(old) for name in ready)
    assert len(ready) == 5
