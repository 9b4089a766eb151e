# SPDX-License-Identifier: Apache-2.0
"""Families that a repository holds, and families that are made from them.

A family never changes. Other precision or another backend makes another family, whose digest holds
that of the first and all that was done to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from export.check import check
from export.check.parameters import ENSEMBLES, parameters_of
from export.configs import MODEL_FILE, VERSION, from_text, to_text
from export.errors import ExportError
from export.repository import (
    CONFIG_FILE,
    KEEP_FILE,
    Written,
    list_families,
    ordered_models,
    write_durably,
    write_models,
)

GRAPH_BACKEND: Final = "onnxruntime"


@dataclass(frozen=True, slots=True)
class RepositoryFamily:
    """A whole family of ONNX graphs in a repository.

    Attributes:
        root: The repository.
        name: Of the family.
        configs: `ModelConfig` messages by role, ensembles included.
    """

    root: Path
    name: str
    configs: Mapping[str, Any]

    @property
    def graph_roles(self) -> tuple[str, ...]:
        """Roles that hold a graph, sorted."""
        return tuple(sorted(self.configs.keys() - ENSEMBLES))

    def parameter(self, key: str) -> str:
        """A ``fewseg.*`` parameter, named without the prefix; all models have the same."""
        value: str = self.configs["features"].parameters[f"fewseg.{key}"].string_value
        return value

    def numbers(self, key: str) -> tuple[int, ...]:
        """A parameter that is a list of integers."""
        return tuple(map(int, self.parameter(key).split(",")))

    def names(self, key: str) -> tuple[str, ...]:
        """A parameter that is a JSON list of names; none if it is left out."""
        return tuple(json.loads(parameters_of(self.configs["features"]).get(key, "[]")))

    def graph(self, role: str) -> bytes:
        """The serialised ONNX graph of a role."""
        return (self.root / f"{self.name}_{role}" / VERSION / MODEL_FILE).read_bytes()


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a family is made from another.

    Attributes:
        settings: What was done, for the digest and for people: goes into `fewseg.provenance`.
        file: The model file of a role, called once for each role that holds a graph.
        file_name: What it is called.
        change: Changes the config of a role beyond names and parameters.
        parameters: Other values of ``fewseg.*`` parameters, named without the prefix.
    """

    settings: Mapping[str, str]
    file: Callable[[str], bytes]
    file_name: str = MODEL_FILE
    change: Callable[[Any], None] = lambda config: None
    parameters: Mapping[str, str] | None = None


def read_family(root: Path, name: str) -> RepositoryFamily:
    """Reads a family that is sound.

    Args:
        root: The repository.
        name: Of a family, or an alias that stands for one family of ONNX graphs only.

    Raises:
        ExportError: There is no such family, several answer to the alias, or `fewseg-export check`
            finds fault with it.
    """
    families = [one for one in list_families(root) if name in (one.family, one.alias)]
    exact = [one for one in families if one.family == name]
    if len(exact or families) != 1:
        found = ", ".join(one.family for one in families or list_families(root)) or "none"
        raise ExportError(f"--family {name!r} names no single family of {root}; there is {found}.")
    (listed,) = exact or families
    problems = [line for line in check(root) if line.startswith(f"{listed.family}_")]
    if problems:
        raise ExportError(f"{problems[0]}; see fewseg-export check.")
    configs = {}
    for path in root.glob(f"{listed.family}_*/{CONFIG_FILE}"):
        config = from_text(path.read_text(encoding="utf-8"))
        configs[config.parameters["fewseg.role"].string_value] = config
    family = RepositoryFamily(root, listed.family, configs)
    for role in family.graph_roles:
        if family.configs[role].backend != GRAPH_BACKEND:
            raise ExportError(f"{family.name} holds no ONNX graphs; name the family it came from.")
    return family


def write_derived(
    family: RepositoryFamily,
    derivation: Derivation,
    out: Path,
    *,
    alias: str = "",
    force: bool = False,
    created: datetime | None = None,
) -> Written:
    """Writes what a derivation makes of a family as a family of its own, whole or not at all.

    Args:
        family: What it is made from; it stays as it is.
        derivation: How.
        out: The repository to write to; may be the same.
        alias: What tasks call the model; as before if empty.
        force: Whether to replace the new family if it is there already.
        created: When it is made; now if None. The gateway serves an alias's latest.

    Raises:
        ExportError: A graph cannot be made.
        RepositoryWriteError: The file system refuses; the repository is as it was.
    """
    digest = _digest(family, derivation, alias)
    name = f"{alias or family.parameter('alias')}-{digest[:8]}"
    moment = (created or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    provenance = json.loads(family.parameter("provenance"))
    values = {
        **(derivation.parameters or {}),
        "alias": alias or family.parameter("alias"),
        "family": name,
        "digest": digest,
        "created": moment.replace("+00:00", "Z"),
        "provenance": json.dumps(
            {**provenance, **derivation.settings, "made_from": family.name}, sort_keys=True
        ),
    }

    def fill(staging: Path) -> None:
        for role, config in family.configs.items():
            _fill_model(staging, role, _renamed(family, role, config, name, values), derivation)

    return write_models(name, ordered_models(name, family.configs), out, fill, force=force)


def _digest(family: RepositoryFamily, derivation: Derivation, alias: str) -> str:
    facts = {
        "digest": family.parameter("digest"),
        "alias": alias,
        "graphs": {
            role: hashlib.sha256(family.graph(role)).hexdigest() for role in family.graph_roles
        },
        "settings": dict(derivation.settings),
        "parameters": dict(derivation.parameters or {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _renamed(
    family: RepositoryFamily, role: str, config: Any, name: str, values: Mapping[str, str]
) -> Any:
    """A copy of a config under the new family's names."""
    copy = type(config)()
    copy.CopyFrom(config)
    copy.name = f"{name}_{role}"
    for key, value in values.items():
        copy.parameters[f"fewseg.{key}"].string_value = value
    for step in copy.ensemble_scheduling.step if role in ENSEMBLES else ():
        step.model_name = f"{name}_{step.model_name.removeprefix(f'{family.name}_')}"
    return copy


def _fill_model(staging: Path, role: str, config: Any, derivation: Derivation) -> None:
    folder = staging / config.name
    (folder / VERSION).mkdir(parents=True)
    if role in ENSEMBLES:
        write_durably(folder / VERSION / KEEP_FILE, b"")
    else:
        config.default_model_filename = derivation.file_name
        derivation.change(config)
        write_durably(folder / VERSION / derivation.file_name, derivation.file(role))
    write_durably(folder / CONFIG_FILE, to_text(config).encode())
