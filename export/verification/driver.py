# SPDX-License-Identifier: Apache-2.0
"""The course of a verification: export once per checkpoint, then compare every stage."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, read_goldens
from export.repository import remove_family, write_family
from export.verification.measures import Measure, measured, not_run, read_each
from export.verification.stored import StoredFamily, TorchFamily
from export.verification.task import Episode, Outcome, compare_ensembles, run_episode

Array = NDArray[Any]

INPUT, TORCH, ONNX, ENSEMBLES = "input", "torch", "onnxruntime", "ensembles as graphs"
"""Stages of a verification; what a gateway answers is one more, see `Gateway`."""

UNKNOWN = 255
"""Label of pixels that nothing is known about, void ones included."""


@dataclass(frozen=True, slots=True)
class Application:
    """The same episode as an application states it.

    Attributes:
        images: RGB uint8 [H, W, 3], one per shot.
        labels: uint8 [H, W]: 0 background, 1 the object, `UNKNOWN` elsewhere.
        query: RGB uint8 [H, W, 3].
        size: Of the answer: "network", or "original" for the photograph's.
    """

    images: Sequence[Array]
    labels: Sequence[Array]
    query: Array
    size: Literal["network", "original"] = "network"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What serves golden cases: a service in this process.

    Attributes:
        triton: Address of a Triton that runs the graphs, which must serve the repository that is
            verified in; empty for the embedded engine.
    """

    triton: str = ""

    @property
    def stage(self) -> str:
        """What the stage is called."""
        return "gateway, triton" if self.triton else "gateway, embedded"


EMBEDDED = Gateway()
"""A gateway that runs graphs itself."""


class Method(Protocol):
    """What verification must know of a method."""

    def export_key(self, golden: Golden) -> Hashable:
        """What the export of a case depends on: cases of equal keys share one."""

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        """Makes the family of a case, by way of a checkpoint saved as official training does."""

    def episode(self, golden: Golden) -> Episode:
        """Returns what the graphs take."""

    def application(self, golden: Golden) -> Application:
        """Returns what an application has in hand."""

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        """Compares what the official network was fed with."""

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        """Compares everything that an episode came to."""

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        """Compares a mask [H, W] and probabilities [P, H, W] at the network's size."""


def verify(
    method: Method,
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, the exported graphs and the gateway with golden cases.

    Args:
        method: Whose cases they are.
        goldens: Folder of its golden vectors.
        names: Which cases; none means all.
        gateway: What serves the cases; None leaves that out.
        repository: Where families are written while they are verified; None for a temporary place.

    Yields:
        A measure for each quantity of each stage; one without an error for what cannot be run.

    Raises:
        GoldenError: The folder is not usable.
        ExportError: The export itself fails.
    """
    groups: dict[Hashable, list[Golden]] = {}
    cases, unreadable = read_each(goldens, names, read_goldens)
    yield from unreadable
    for golden in cases:
        groups.setdefault(method.export_key(golden), []).append(golden)
    for group in groups.values():
        # One family at a time, in a folder of its own: some hold hundreds of megabytes.
        with tempfile.TemporaryDirectory(prefix="fewseg-verify-") as folder:
            root = repository or Path(folder, "repository")
            family = method.export(group[0], goldens, Path(folder))
            with written(family, root):
                for golden in group:
                    yield from measured(golden.name, _verify_graphs(method, golden, family, root))
                    if gateway is not None:
                        served = _verify_served(method, golden, root, family.alias, gateway)
                        yield from measured(golden.name, served)


def measure_torch(method: Method, goldens: Path, name: str) -> Iterator[Measure]:
    """Compares one case in torch alone, which takes a tenth of what exporting it does.

    Args:
        method: Whose case it is.
        goldens: Folder of its golden vectors.
        name: Of the case.

    Raises:
        GoldenError: The folder is not usable.
    """
    (golden,) = read_goldens(goldens, [name])
    with tempfile.TemporaryDirectory(prefix="fewseg-verify-") as folder:
        yield from _verify_torch(method, golden, method.export(golden, goldens, Path(folder)))


@contextmanager
def written(family: Family, root: Path) -> Iterator[None]:
    """Writes a family into a repository, and removes it in the end."""
    write_family(family, root)
    try:
        yield
    finally:
        remove_family(root, family.name)


def _verify_graphs(
    method: Method, golden: Golden, family: Family, repository: Path
) -> Iterator[Measure]:
    yield from _verify_torch(method, golden, family)
    episode = method.episode(golden)
    stored = StoredFamily(repository, family.name).run
    outcome = run_episode(episode, family, stored)
    yield from method.compare(golden, family, outcome, ONNX)
    for quantity, error in compare_ensembles(episode, family, stored, outcome):
        yield Measure(golden.name, ENSEMBLES, quantity, error, 0.0)


def _verify_torch(method: Method, golden: Golden, family: Family) -> Iterator[Measure]:
    yield from method.compare_input(golden, family)
    outcome = run_episode(method.episode(golden), family, TorchFamily(family).run)
    yield from method.compare(golden, family, outcome, TORCH)


def _verify_served(
    method: Method, golden: Golden, repository: Path, alias: str, gateway: Gateway
) -> Iterator[Measure]:
    # Imported here: the SDK is wanted by this stage only.
    from export.verification.served import segment_application
    from fewseg import FewSegError

    try:
        mask, probabilities = segment_application(
            method.application(golden), repository, alias, gateway
        )
    except (FewSegError, ImportError) as error:
        yield not_run(golden.name, gateway.stage, error)
        return
    yield from method.compare_served(golden, mask, probabilities, gateway.stage)
