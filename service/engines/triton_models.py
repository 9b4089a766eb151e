# SPDX-License-Identifier: Apache-2.0
"""The models of a family, as Triton tells their configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.core.family import GraphRole
from service.engines.config_files import ModelConfig, TensorSpec, tensor_specs
from service.engines.manifest import FamilyModels


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a loaded family.

    Attributes:
        model: Its name.
        inputs, outputs: As its config declares them.
        max_batch: Largest batch.
        graphs: What one run of it runs: itself, or the steps of an ensemble.
    """

    model: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    max_batch: int
    graphs: tuple[GraphRole, ...]


def served_models(models: FamilyModels) -> dict[GraphRole, Model]:
    """Reads signatures and steps of all models of a family."""
    roles = {config.name: role for role, config in models.configs.items()}
    return {role: _read_model(role, config, roles) for role, config in models.configs.items()}


def _read_model(role: GraphRole, config: ModelConfig, roles: Mapping[str, GraphRole]) -> Model:
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    return Model(
        model=config.name,
        inputs=tensor_specs(config, config.input),
        outputs=tensor_specs(config, config.output),
        max_batch=config.max_batch_size,
        graphs=tuple(roles[step] for step in steps if step in roles) or (role,),
    )
