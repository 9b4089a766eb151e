# SPDX-License-Identifier: Apache-2.0
"""Verifies PANet from an official checkpoint file to the mask that an application gets."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch

from export.family import Family
from export.goldens import Case, read_cases, read_keys, seeded_checkpoint
from export.methods.prototypes import PrototypeFeatures
from export.prototype_family import prototype_family
from export.sources import panet_checkpoint
from export.verification.driver import EMBEDDED, Gateway, written
from export.verification.episode import Runner, network_image, run_ensembles, run_episode
from export.verification.measures import (
    Measure,
    measure_difference,
    measure_input,
    measure_outcome,
    measure_planes,
    measure_served,
    measured,
    not_run,
    read_each,
)
from export.verification.stored import StoredFamily, TorchFamily


def verify_panet(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, the exported graphs and the gateway with golden cases.

    The seeded weights are saved as an official checkpoint is, read back as one and exported, so
    that every step of a real export is under test.

    Args:
        goldens: Folder of PANet's golden vectors.
        names: Which cases; none means all.
        gateway: What serves the cases; None leaves that out.
        repository: Where families are written while they are verified; None for a temporary place.

    Yields:
        A measure for each quantity of each stage; one without an error for what cannot be run.

    Raises:
        GoldenError: The folder is not usable.
        ExportError: The export itself fails.
    """
    cases, unreadable = read_each(goldens, names, read_cases)
    yield from unreadable
    shapes = read_keys(goldens)
    with tempfile.TemporaryDirectory(prefix="fewseg-verify-") as folder:
        cases.sort(key=_family_key)
        root = repository or Path(folder, "repository")
        for (seed, size), group in groupby(cases, key=_family_key):
            checkpoint = Path(folder, "30000.pth")
            save_as_official(seeded_checkpoint(shapes, seed), checkpoint)
            family = _family_of(checkpoint, size)
            with written(family, root):
                for case in group:
                    yield from measured(case.name, _verify_case(case, family, root))
                    if gateway is not None:
                        served = _verify_served(case, family, root, gateway)
                        yield from measured(case.name, served)


def save_as_official(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Saves tensors as the official training does: legacy format, keys behind `module.`."""
    state = OrderedDict((f"module.{key}", tensor) for key, tensor in tensors.items())
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _family_key(case: Case) -> tuple[int, tuple[int, int]]:
    return case.weight_seed, case.network_size


def _family_of(checkpoint: Path, size: tuple[int, int]) -> Family:
    source = panet_checkpoint(checkpoint)
    return prototype_family(
        method="panet",
        alias="panet",
        trunk=source.trunk,
        size=size,
        provenance=source.provenance,
    )


def _verify_case(case: Case, family: Family, repository: Path) -> Iterator[Measure]:
    yield measure_planes(case)
    module = family.graphs[0].module
    assert isinstance(module, PrototypeFeatures)
    query = torch.tensor(network_image(case.arrays["query_image"], case.network_size))
    yield measure_input(case, module.normalise(query[None])[0].numpy())
    yield from measure_outcome(case, "torch", run_episode(case, TorchFamily(family).run))
    stored: Runner = StoredFamily(repository, family.name).run
    outcome = run_episode(case, stored)
    yield from measure_outcome(case, "onnxruntime", outcome)
    encoded, decoded = run_ensembles(case, stored, outcome.prototypes)
    for quantity, first, second in (
        ("support_encoder", encoded, outcome.shots[0, 0]),
        ("query_decoder", decoded, outcome.scores),
    ):
        yield measure_difference(case, "ensembles as graphs", quantity, first, second)


def _verify_served(
    case: Case, family: Family, repository: Path, gateway: Gateway
) -> Iterator[Measure]:
    # Imported here: the SDK is wanted by this stage only.
    from export.verification.served import segment_served
    from fewseg import FewSegError

    try:
        mask, probabilities = segment_served(case, repository, family.alias, gateway)
    except (FewSegError, ImportError) as error:
        yield not_run(case.name, gateway.stage, error)
        return
    yield from measure_served(case, gateway.stage, mask, probabilities)
