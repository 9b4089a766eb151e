# SPDX-License-Identifier: Apache-2.0
"""A whole repository: every model by itself, and the models of a family together."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from export.check.accelerators import check_accelerators
from export.check.ensembles import check_ensemble
from export.check.models import check_model
from export.check.parameters import (
    ENSEMBLES,
    EXTENT_ROLES,
    ROLES,
    check_parameters,
    parameters_of,
)
from export.configs import from_text
from export.errors import RepositoryWriteError
from export.merging import VALIDITY
from export.repository import CONFIG_FILE


def check(repository: Path) -> list[str]:
    """Finds what Triton 24.10 or the gateway would refuse, without running anything.

    Checked are configs against graphs by the rules of the C++ ONNX Runtime backend, versions of IR
    and operators, warm-ups, queues, the tensors of the ensembles, the ``fewseg.*`` parameters, and
    whether families are complete. Models of others are left alone.

    Args:
        repository: The model repository.

    Returns:
        A line for each problem, which begins with the model's folder; empty if all is well.

    Raises:
        RepositoryWriteError: It is not a folder.
    """
    if not repository.is_dir():
        raise RepositoryWriteError(f"{repository} is not a folder; name a model repository.")
    problems: list[str] = []
    families: dict[str, dict[str, Any]] = defaultdict(dict)
    for folder in sorted(repository.iterdir()):
        if not folder.is_dir() or folder.name.startswith(".") or not _is_ours(folder):
            continue
        config, unreadable = _read(folder)
        problems += [f"{folder.name}/{problem}" for problem in unreadable]
        if config is not None:
            problems += [f"{folder.name}/{problem}" for problem in _check_alone(folder, config)]
            families[folder.name.rpartition(_suffix(folder.name))[0]][folder.name] = config
    for name, models in sorted(families.items()):
        problems += _check_family(name, models)
    return problems


def _suffix(model: str) -> str:
    """The role at the end of a model's name, with its underscore; the longest that fits."""
    fitting = [f"_{role}" for role in ROLES if model.endswith(f"_{role}")]
    return max(fitting, key=len, default="")


def _is_ours(folder: Path) -> bool:
    if _suffix(folder.name):
        return True
    path = folder / CONFIG_FILE
    return path.is_file() and b"fewseg." in path.read_bytes()


def _read(folder: Path) -> tuple[Any | None, list[str]]:
    """The config of a model, or why there is none."""
    try:
        return from_text((folder / CONFIG_FILE).read_text(encoding="utf-8")), []
    except FileNotFoundError:
        return None, [f"{CONFIG_FILE}: is missing"]
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        return None, [f"{CONFIG_FILE}: is no Triton model configuration: {error}"]


def _check_alone(folder: Path, config: Any) -> Iterator[str]:
    if config.name != folder.name:
        yield f"{CONFIG_FILE}: name is {config.name!r}, not the folder's"
    yield from check_parameters(folder.name, parameters_of(config))
    role = parameters_of(config).get("role", "")
    if (role in ENSEMBLES) != config.HasField("ensemble_scheduling"):
        yield f"{CONFIG_FILE}: {role or 'the model'} has the wrong kind; ensembles are " + (
            ", ".join(sorted(ENSEMBLES))
        )
    yield from check_model(folder, config)
    yield from check_accelerators(config)


def _check_family(name: str, models: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong between the models of a family."""
    values = {model: parameters_of(config) for model, config in sorted(models.items())}
    first, *others = values
    for other in others:
        for key in sorted(values[first].keys() | values[other].keys()):
            if key != "role" and values[first].get(key) != values[other].get(key):
                yield f"{other}/{CONFIG_FILE}: fewseg.{key} differs from that of {first}"
    named = {f"{name}_{role}" for role in values[first].get("graphs", "").split(",") if role}
    for missing in sorted(named - models.keys()):
        yield f"{missing}: is missing, and fewseg.graphs names it"
    for extra in sorted(models.keys() - named):
        yield f"{extra}: fewseg.graphs does not name it"
    for model, config in sorted(models.items()):
        if config.HasField("ensemble_scheduling"):
            yield from (f"{model}/{problem}" for problem in check_ensemble(config, models))
    yield from _check_guidance(name, models, values[first].get("guidance", ""))
    yield from _check_extent(name, models, values[first].get("extent", ""))
    yield from _check_merge(name, models, values[first])


def _check_extent(name: str, models: Mapping[str, Any], roles: str) -> Iterator[str]:
    """Yields graphs that have ``extent`` and are not named, or the other way round."""
    for role in EXTENT_ROLES:
        config = models.get(f"{name}_{role}")
        if config is None:
            continue
        found = [tuple(tensor.dims) for tensor in config.input if tensor.name == "extent"]
        if found != ([(2,)] if role in roles.split(",") else []):
            yield (
                f"{config.name}/{CONFIG_FILE}: must have an input 'extent' of dims [2] if "
                f"fewseg.extent names {role}, and only then"
            )


def _check_guidance(name: str, models: Mapping[str, Any], text: str) -> Iterator[str]:
    """Yields guidance that ``guide`` or ``merge`` does not make or ``decode`` does not take."""
    decode = models.get(f"{name}_decode")
    try:
        entries = json.loads(text)
        names = [
            (entry["name"], entry.get("weight"), entry.get("validity"), entry["merge"] == "graph")
            for entry in entries
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        return  # said of the parameter itself
    if decode is None:
        return
    taken = {tensor.name for tensor in decode.input}
    for tensor, weight, validity, merged in names:
        maker = models.get(f"{name}_{'merge' if merged else 'guide'}")
        made = _outputs(maker)
        for wanted in filter(None, (tensor, weight)):
            if maker is not None and wanted not in made:
                yield f"{maker.name}/{CONFIG_FILE}: fewseg.guidance names {wanted!r}, no output"
        for wanted in filter(None, (tensor, validity)):
            if wanted not in taken:
                yield f"{decode.name}/{CONFIG_FILE}: fewseg.guidance names {wanted!r}, no input"
    if "logits" not in {tensor.name for tensor in decode.output}:
        yield f"{decode.name}/{CONFIG_FILE}: has no output 'logits'"


def _check_merge(name: str, models: Mapping[str, Any], values: Mapping[str, str]) -> Iterator[str]:
    """Yields inputs of ``merge`` that its parameters do not name, or that nothing makes."""
    merge = models.get(f"{name}_merge")
    try:
        stacked = set(json.loads(values.get("merge_inputs", "[]")))
        judged = set(json.loads(values.get("merge_judged", "[]")))
    except (ValueError, TypeError):
        return  # said of the parameter itself
    if merge is None:
        return
    of_image = _outputs(models.get(f"{name}_features")) | {"planes"}
    for lost in sorted((stacked | judged) - of_image - _outputs(models.get(f"{name}_guide"))):
        yield f"{merge.name}/{CONFIG_FILE}: nothing makes its input {lost!r}"
    if {tensor.name for tensor in merge.input} != stacked | judged | {VALIDITY}:
        yield (
            f"{merge.name}/{CONFIG_FILE}: its inputs are not {VALIDITY!r} and those that "
            "fewseg.merge_inputs and fewseg.merge_judged name"
        )
    if values.get("input_size") == "native" and stacked & of_image:
        yield f"{merge.name}/{CONFIG_FILE}: maps of a native input size cannot be stacked"


def _outputs(config: Any) -> set[str]:
    return set() if config is None else {tensor.name for tensor in config.output}
