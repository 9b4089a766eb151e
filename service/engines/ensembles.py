# SPDX-License-Identifier: Apache-2.0
"""Triton's ensembles: graphs that hand tensors to each other, walked in-process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from numpy.typing import NDArray

from service.core.errors import RepositoryError
from service.core.family import GraphRole
from service.engines.config_files import (
    ModelConfig,
    TensorSpec,
    compatible,
    config_path,
    tensor_specs,
)
from service.engines.sessions import Arrays, Graph, Run


@dataclass(frozen=True, slots=True)
class Step:
    """One graph of an ensemble.

    Attributes:
        graph: The graph.
        sources: Tensor of the ensemble by input of the graph.
        products: Tensor of the ensemble by output of the graph.
    """

    graph: Graph
    sources: Mapping[str, str]
    products: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """An ensemble whose steps stand in an order in which they can run.

    Attributes:
        role: Which one of its family.
        model: Name of its model.
        inputs, outputs: As its config declares them.
        max_batch: Largest batch.
        steps: The graphs.
    """

    role: GraphRole
    model: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    max_batch: int
    steps: tuple[Step, ...]

    def run(self, feeds: Arrays, run: Run) -> dict[str, NDArray[Any]]:
        """Runs the graphs on checked inputs and returns the ensemble's outputs."""
        tensors = dict(feeds)
        for step in self.steps:
            values = step.graph.run(
                {name: tensors[source] for name, source in step.sources.items()}, run
            )
            tensors.update((product, values[name]) for name, product in step.products.items())
        return {name: tensors[name] for name in self.outputs}


def open_ensemble(role: GraphRole, config: ModelConfig, graphs: Mapping[str, Graph]) -> Ensemble:
    """Orders the steps of an ensemble and checks every tensor between them.

    Args:
        role: Of the ensemble.
        config: With ``ensemble_scheduling``.
        graphs: The family's graphs by model name.

    Raises:
        RepositoryError: A step names a model outside the family, or a tensor that
            is missing, made twice, of another type, or never used as declared
            (reason ENSEMBLE_INVALID).
    """
    inputs = tensor_specs(config, config.input)
    outputs = tensor_specs(config, config.output)
    known = dict(inputs)
    waiting = [_read_step(config, step, graphs) for step in config.ensemble_scheduling.step]
    ordered: list[Step] = []
    while waiting:
        step = next((s for s in waiting if known.keys() >= set(s.sources.values())), None)
        if step is None:
            missing = {source for s in waiting for source in s.sources.values()} - known.keys()
            _fail(config, f"no step can make tensor {min(missing)!r} before it is needed")
        waiting.remove(step)
        ordered.append(step)
        _connect(config, step, known)
    _check_outputs(config, outputs, known, ordered)
    unused = inputs.keys() - {source for step in ordered for source in step.sources.values()}
    if unused:
        _fail(config, f"no step takes input {min(unused)!r}")
    return Ensemble(role, config.name, inputs, outputs, config.max_batch_size, tuple(ordered))


def _read_step(config: ModelConfig, step: Any, graphs: Mapping[str, Graph]) -> Step:
    graph = graphs.get(step.model_name)
    if graph is None:
        _fail(config, f"step {step.model_name!r} is no graph of this family")
    if config.max_batch_size > graph.max_batch:
        _fail(config, f"max_batch_size is larger than that of step {step.model_name!r}")
    sources, products = dict(step.input_map), dict(step.output_map)
    for name in sorted(sources.keys() ^ graph.inputs.keys()):
        problem = "is no input of it" if name in sources else "is missing"
        _fail(config, f"step {step.model_name!r}: input_map key {name!r} {problem}")
    for name in sorted(products.keys() - graph.outputs.keys()):
        _fail(config, f"step {step.model_name!r}: output_map key {name!r} is no output of it")
    return Step(graph, sources, products)


def _connect(config: ModelConfig, step: Step, known: dict[str, TensorSpec]) -> None:
    """Checks what a step takes against what is known, and adds what it makes."""
    for name, source in step.sources.items():
        _check_twin(config, source, known[source], step.graph.inputs[name])
    for name, product in step.products.items():
        if product in known:
            _fail(config, f"tensor {product!r} is made twice")
        known[product] = step.graph.outputs[name]


def _check_outputs(
    config: ModelConfig,
    outputs: Mapping[str, TensorSpec],
    known: Mapping[str, TensorSpec],
    steps: list[Step],
) -> None:
    taken = {source for step in steps for source in step.sources.values()}
    for name, spec in outputs.items():
        if name not in known:
            _fail(config, f"no step makes output {name!r}")
        if name in taken:
            # Triton stalls on it when a client does not ask for that output.
            _fail(config, f"output {name!r} also feeds a step; an ensemble outputs ends only")
        _check_twin(config, name, known[name], spec)


def _check_twin(config: ModelConfig, tensor: str, made: TensorSpec, taken: TensorSpec) -> None:
    if made.dtype != taken.dtype or not compatible(made.dims, taken.dims):
        _fail(
            config,
            f"tensor {tensor!r} is {made.dtype} {list(made.dims)} where it comes from, "
            f"{taken.dtype} {list(taken.dims)} where it goes",
        )


def _fail(config: ModelConfig, problem: str) -> NoReturn:
    raise RepositoryError("ENSEMBLE_INVALID", f"{config_path(config.name)}: {problem}.")
