# SPDX-License-Identifier: Apache-2.0
"""Families from folders to memory: found, opened, checked and rehearsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.core.errors import RepositoryError
from service.core.family import GraphRole, InputDtype, MergeRule, ModelFamily
from service.core.merge_tensors import VALIDITY
from service.core.types import Size
from service.engines.config_files import (
    ModelConfig,
    config_path,
    graph_file,
    model_folders,
    read_config,
    version_folder,
)
from service.engines.ensembles import Ensemble, open_ensemble
from service.engines.manifest import Catalog, FamilyModels, is_ensemble, read_catalog
from service.engines.sessions import Graph, Run, open_graph

Runnable: TypeAlias = Graph | Ensemble

#: Triton's two ways to say "ONNX Runtime".
_BACKEND: Final = "onnxruntime"
_PLATFORM: Final = "onnxruntime_onnx"

#: Side of the rehearsal's image where the network takes any size and no warm-up names one.
_ANY_SIZE: Final = 128


@dataclass(frozen=True, slots=True)
class LoadedFamily:
    """A family whose graphs are in memory."""

    family: ModelFamily
    models: Mapping[GraphRole, Runnable]


def read_repository(repository: Path) -> Catalog:
    """Reads every config of a repository and sees that the graphs are there.

    Raises:
        OSError: The repository cannot be read.
    """
    configs: dict[str, ModelConfig] = {}
    problems: list[str] = []
    broken: list[str] = []
    for folder in model_folders(repository):
        try:
            configs[folder.name] = read_config(folder)
        except RepositoryError as error:
            broken.append(folder.name)
            # Somebody else's model may leave its config to Triton's auto-completion.
            if error.reason != "CONFIG_MISSING" or _sounds_like_ours(folder.name):
                problems.append(error.message)
    catalog = read_catalog(configs, broken)
    problems.extend(catalog.problems)
    families = {}
    for name, models in catalog.families.items():
        try:
            _check_files(repository, models)
        except RepositoryError as error:
            problems.append(error.message)
        else:
            families[name] = models
    return Catalog(families, problems)


def _sounds_like_ours(folder: str) -> bool:
    return any(folder.endswith(f"_{role.value}") for role in GraphRole)


def _check_files(repository: Path, models: FamilyModels) -> None:
    for role, config in models.configs.items():
        if is_ensemble(role):
            version_folder(repository / config.name, config)
            continue
        if config.backend != _BACKEND and config.platform != _PLATFORM:
            raise RepositoryError(
                "CONFIG_INVALID",
                f"{config_path(config.name)}: backend must be {_BACKEND} to run in-process.",
            )
        graph_file(repository / config.name, config)


def load_family(
    repository: Path, models: FamilyModels, threads: int, providers: Sequence[str]
) -> LoadedFamily:
    """Opens all graphs of a family, ties its ensembles and runs every graph once.

    Raises:
        RepositoryError: Something does not fit; the message names the file.
    """
    graphs: dict[GraphRole, Graph] = {}
    for role, config in models.configs.items():
        if not is_ensemble(role):
            path = graph_file(repository / config.name, config)
            graphs[role] = open_graph(role, config, path, threads, providers)
    by_model = {graph.model: graph for graph in graphs.values()}
    ensembles = {
        role: open_ensemble(role, config, by_model)
        for role, config in models.configs.items()
        if is_ensemble(role)
    }
    _rehearse(models, graphs)
    return LoadedFamily(models.family, {**graphs, **ensembles})


def _rehearse(models: FamilyModels, graphs: Mapping[GraphRole, Graph]) -> None:
    """Runs every graph once, each on what the one before it returned.

    So the first request finds warm graphs, and a family whose graphs do not fit each other or its
    parameters is refused before a task meets it.
    """
    family = models.family
    size = _rehearsal_size(models)
    dtype = np.uint8 if family.input_dtype is InputDtype.UINT8 else np.uint16
    features = _run(
        graphs[GraphRole.FEATURES], {"image": np.zeros((1, size.height, size.width, 3), dtype)}
    )
    planes = np.zeros((1, 2, size.height, size.width), np.float32)
    planes[:, 1, : (size.height + 1) // 2] = 1.0
    planes[:, 0] = 1.0 - planes[:, 1]
    extent = {"extent": np.array([[size.height, size.width]], np.float32)}
    guidance = _run(graphs[GraphRole.GUIDE], {**features, "planes": planes, **extent})
    query = features
    if GraphRole.QUERY_FEATURES in graphs:
        query = _run(graphs[GraphRole.QUERY_FEATURES], {**features, **extent})
    task = _as_task(family, guidance)
    if GraphRole.MERGE in graphs:
        shown = {**features, **guidance, **extent, "planes": planes}
        task |= _merged(family, graphs[GraphRole.MERGE], shown)
    decode = graphs[GraphRole.DECODE]
    logits = _run(decode, {**query, **task, **extent}).get("logits")
    planes_out = family.background_planes + 1
    if logits is None or logits.ndim != 5 or logits.shape[:2] != (1, planes_out):
        _fail(decode, f"must return logits [batch, {planes_out}, shots or 1, h, w] for one way")


def _as_task(family: ModelFamily, guidance: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Guidance of a task with one shot."""
    tensors: dict[str, NDArray[Any]] = {}
    for tensor in family.guidance:
        if tensor.merge is MergeRule.GRAPH:
            continue
        values = guidance[tensor.name]
        tensors[tensor.name] = values[:, None] if tensor.merge is MergeRule.STACK else values
        if tensor.validity is not None:
            tensors[tensor.validity] = np.ones((1, 1), np.float32)
    return tensors


def _merged(
    family: ModelFamily, merge: Graph, shot: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """What ``merge`` makes of one shot that judges itself."""
    feeds: dict[str, NDArray[Any]] = {VALIDITY: np.ones((1, 1), np.float32)}
    feeds |= {name: shot[name][:, None] for name in family.merge_inputs if name in shot}
    feeds |= {name: shot[name] for name in family.merge_judged if name in shot}
    made = _run(merge, feeds)
    tensors: dict[str, NDArray[Any]] = {}
    for tensor in family.guidance:
        if tensor.merge is MergeRule.GRAPH:
            values = made[tensor.name]
            tensors[tensor.name] = values[:, None] if family.merge_judged else values
            if tensor.validity is not None:
                tensors[tensor.validity] = feeds[VALIDITY]
    return tensors


def _run(graph: Graph, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Runs a graph on those of the tensors that it takes."""
    feeds: dict[str, NDArray[Any]] = {}
    for name, spec in graph.inputs.items():
        if name not in tensors:
            _fail(graph, f"takes {name!r}, which no graph before it returns")
        feeds[name] = tensors[name]
        try:
            spec.check(feeds[name])
        except ValueError as error:
            _fail(graph, str(error))
    try:
        if graph.lean is not None:
            graph.run(feeds, Run(lambda: True))
        return graph.run(feeds, Run())
    # Each failure of the runtime has a class of its own, with no base but this.
    except Exception as error:
        raise RepositoryError(
            "GRAPH_INVALID",
            f"{config_path(graph.model)}: the graph fails on a plain input: {error}.",
        ) from error


def _rehearsal_size(models: FamilyModels) -> Size:
    """The network's input size; for a native one that of the config's first warm-up image."""
    if models.family.input_size is not None:
        return models.family.input_size
    for warmup in models.configs[GraphRole.FEATURES].model_warmup:
        dims = tuple(warmup.inputs["image"].dims) if "image" in warmup.inputs else ()
        if len(dims) == 3:
            return Size(dims[0], dims[1])
    return Size(_ANY_SIZE, _ANY_SIZE)


def _fail(graph: Graph, problem: str) -> NoReturn:
    raise RepositoryError("GRAPH_MISMATCH", f"{config_path(graph.model)}: {problem}.")
