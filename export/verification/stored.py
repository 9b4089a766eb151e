# SPDX-License-Identifier: Apache-2.0
"""Runs a family from the files of a repository, ensembles as their configs wire them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from export.configs import MODEL_FILE, VERSION, from_text
from export.errors import GraphError
from export.family import Family
from export.graphs import OnnxGraph
from export.repository import CONFIG_FILE

Arrays = Mapping[str, NDArray[Any]]
"""Tensors by name, batch first."""


class TorchFamily:
    """A family run by its torch modules."""

    def __init__(self, family: Family) -> None:
        """Takes the family's modules."""
        self._graphs = {graph.role: graph for graph in family.graphs}

    def run(self, role: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Runs one graph on tensors by name; returns its outputs by name."""
        graph = self._graphs[role]
        arguments = [torch.tensor(inputs[spec.name]) for spec in graph.inputs]
        with torch.no_grad():
            results = graph.module(*arguments)
        values = (results,) if isinstance(results, torch.Tensor) else results
        return {spec.name: value.numpy() for spec, value in zip(graph.outputs, values, strict=True)}


class StoredFamily:
    """A family run from its files by ONNX Runtime."""

    def __init__(self, root: Path, name: str) -> None:
        """Names a family of a repository; models are read when they are first run."""
        self._root = root
        self._name = name
        self._graphs: dict[str, OnnxGraph] = {}
        self._configs: dict[str, Any] = {}

    def run(self, role: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Runs a graph or an ensemble on those of the tensors that it takes.

        Returns:
            Its outputs by name.

        Raises:
            GraphError: A model is missing, or its tensors are not those of its config.
        """
        return self._run_model(f"{self._name}_{role}", inputs)

    def _run_model(self, model: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        config = self._config(model)
        # Not every graph needs all that `features` returns.
        wanted = {tensor.name for tensor in config.input}
        inputs = {name: values for name, values in inputs.items() if name in wanted}
        _check_names("inputs", model, config.input, inputs)
        if config.HasField("ensemble_scheduling"):
            results = self._run_steps(config, inputs)
        else:
            if model not in self._graphs:
                path = self._root / model / VERSION / MODEL_FILE
                self._graphs[model] = OnnxGraph(path.read_bytes())
            results = self._graphs[model](dict(inputs))
        _check_names("outputs", model, config.output, results)
        return results

    def _run_steps(self, config: Any, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Hands tensors from step to step, by the ensemble's own names."""
        pool = dict(inputs)
        for step in config.ensemble_scheduling.step:
            taken = {name: pool[tensor] for name, tensor in step.input_map.items()}
            made = self._run_model(step.model_name, taken)
            pool |= {tensor: made[name] for name, tensor in step.output_map.items()}
        return {tensor.name: pool[tensor.name] for tensor in config.output}

    def _config(self, model: str) -> Any:
        if model not in self._configs:
            path = self._root / model / CONFIG_FILE
            try:
                self._configs[model] = from_text(path.read_text(encoding="utf-8"))
            except OSError as error:
                raise GraphError(f"{path} cannot be read ({error.strerror}).") from error
        return self._configs[model]


def _check_names(kind: str, model: str, declared: Any, given: Arrays) -> None:
    names = {tensor.name for tensor in declared}
    if names != set(given):
        raise GraphError(f"{model} declares the {kind} {sorted(names)}, not {sorted(given)}.")
