# SPDX-License-Identifier: Apache-2.0
"""The tensors between the steps of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from export.check.models import Tensor, declared


def check_ensemble(config: Any, models: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with an ensemble.

    Args:
        config: Of the ensemble.
        models: Configs of the family's models by name.
    """
    known = declared(config.input)
    taken: set[str] = set()
    waiting = list(config.ensemble_scheduling.step)
    for step in list(waiting):
        problems = list(_check_step(config, step, models))
        yield from problems
        if problems:
            waiting.remove(step)
    while waiting:
        step = next((s for s in waiting if known.keys() >= set(s.input_map.values())), None)
        if step is None:
            missing = {source for s in waiting for source in s.input_map.values()} - known.keys()
            yield f"config.pbtxt: no step makes tensor {min(missing)!r} before it is needed"
            return
        waiting.remove(step)
        taken |= set(step.input_map.values())
        yield from _connect(step, models[step.model_name], known)
    yield from _check_ends(config, known, taken)


def _check_step(config: Any, step: Any, models: Mapping[str, Any]) -> Iterator[str]:
    where = f"config.pbtxt: step {step.model_name!r}"
    model = models.get(step.model_name)
    if model is None:
        yield f"{where}: is no model of this family"
        return
    if config.max_batch_size > model.max_batch_size:
        yield f"{where}: its max_batch_size is smaller than the ensemble's"
    for name in sorted(declared(model.input).keys() ^ step.input_map.keys()):
        yield f"{where}: input_map and the step's inputs differ in {name!r}"
    for name in sorted(step.output_map.keys() - declared(model.output).keys()):
        yield f"{where}: output_map names {name!r}, which is no output of it"


def _connect(step: Any, model: Any, known: dict[str, Tensor]) -> Iterator[str]:
    """Checks what a step takes against what is known, and adds what it makes."""
    inputs, outputs = declared(model.input), declared(model.output)
    for name, source in sorted(step.input_map.items()):
        if not known[source].fits(inputs[name]):
            yield (
                f"config.pbtxt: tensor {source!r} is {known[source]} where it comes from and "
                f"{inputs[name]} where step {step.model_name!r} takes it"
            )
    for name, product in sorted(step.output_map.items()):
        if product in known:
            yield f"config.pbtxt: tensor {product!r} is made twice"
        known[product] = outputs[name]


def _check_ends(config: Any, known: Mapping[str, Tensor], taken: set[str]) -> Iterator[str]:
    for name, tensor in sorted(declared(config.output).items()):
        if name not in known:
            yield f"config.pbtxt: no step makes output {name!r}"
        elif not tensor.fits(known[name]):
            yield f"config.pbtxt: output {name!r} is {tensor}, and made as {known[name]}"
        if name in taken:
            yield (
                f"config.pbtxt: output {name!r} also feeds a step; Triton stalls on it when a "
                "client does not ask for it"
            )
    for name in sorted(declared(config.input).keys() - taken):
        yield f"config.pbtxt: no step takes input {name!r}"
