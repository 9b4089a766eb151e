# SPDX-License-Identifier: Apache-2.0
"""Families of TensorRT plans, for Triton's own TensorRT backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from export.configs import PLAN_BACKEND, PLAN_FILE
from export.derived import Derivation, read_family, write_derived
from export.half import HALF_ROLES
from export.plan_builder import BuildSettings, PlanBuilder, find_builder
from export.profiles import profiles, within
from export.repository import Written


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What plans are built for, and how.

    Attributes:
        half: Whether `features` and `query_features` may compute in float16.
        ways, shots: The most of a task; the family's bucket that holds them counts.
        workspace_mib: The most memory that building and running one layer may take.
        timing_cache: File that keeps how fast each kernel was; None for none.
    """

    half: bool = False
    ways: int = 8
    shots: int = 5
    workspace_mib: int = 2048
    timing_cache: Path | None = None


def build_plans(
    root: Path,
    name: str,
    settings: PlanSettings,
    *,
    out: Path | None = None,
    alias: str = "",
    force: bool = False,
    find: Callable[[], PlanBuilder] = find_builder,
    created: datetime | None = None,
) -> Written:
    """Builds TensorRT plans of a family's graphs, and writes them as a family of its own.

    A plan belongs to one release of TensorRT and one kind of GPU, so both go into the new family's
    digest and provenance. Version-compatible plans are not built: they carry a runtime of their own
    and lose kernels. The new family takes no more ways and shots than its plans.

    Args:
        root: The repository that holds the family.
        name: Of the family, or its alias.
        settings: What the plans are built for.
        out: The repository to write to; the same if None. The embedded engine runs no plans, and
            refuses a repository that holds some.
        alias: What tasks call the new model; as before if empty.
        force: Whether to replace the new family if it is there already.
        find: Finds TensorRT and a GPU.
        created: When it is made; now if None.

    Raises:
        ExportError: There is no such family, it takes images of any size, or this machine has no
            GPU or no TensorRT.
        GraphError: TensorRT does not take a graph.
        RepositoryWriteError: The file system refuses; the repository is as it was.
    """
    family = read_family(root, name)
    ways = within(settings.ways, family.numbers("way_buckets"), "ways")
    # Where shots are merged before `decode`, no axis counts them.
    buckets = family.numbers("shot_buckets")
    shots = within(min(settings.shots, buckets[-1]), buckets, "shots")
    shapes = {
        role: profiles(family.configs[role], family.parameter("guidance"), ways, shots)
        for role in family.graph_roles
    }
    builder = find()

    def build(role: str) -> bytes:
        half = settings.half and role in HALF_ROLES
        built = BuildSettings(half, settings.workspace_mib, settings.timing_cache)
        return builder.build(family.graph(role), shapes[role], built)

    derivation = Derivation(
        settings=_facts(builder, settings, ways[-1], shots[-1]),
        file=build,
        file_name=PLAN_FILE,
        change=_onto_gpu,
        parameters={
            "way_buckets": ",".join(map(str, ways)),
            "shot_buckets": ",".join(map(str, shots)),
        },
    )
    return write_derived(family, derivation, out or root, alias=alias, force=force, created=created)


def _facts(builder: PlanBuilder, settings: PlanSettings, ways: int, shots: int) -> dict[str, str]:
    return {
        "tensorrt": builder.version,
        "gpu": builder.gpu,
        "tensorrt_precision": "fp16" if settings.half else "fp32",
        "tensorrt_workspace_mib": str(settings.workspace_mib),
        "tensorrt_ways": str(ways),
        "tensorrt_shots": str(shots),
    }


def _onto_gpu(config: Any) -> None:
    """Has Triton's TensorRT backend run a model."""
    config.backend = PLAN_BACKEND
    config.ClearField("platform")
    config.ClearField("optimization")
    config.ClearField("instance_group")
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_GPU)
