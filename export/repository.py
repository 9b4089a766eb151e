# SPDX-License-Identifier: Apache-2.0
"""Writes families into a model repository, whole or not at all, and lists what one holds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from export.configs import MODEL_FILE, VERSION, from_text, model_configs, to_text
from export.errors import RepositoryWriteError
from export.family import Family, Graph
from export.graphs import export_graph

CONFIG_FILE = "config.pbtxt"
KEEP_FILE = ".gitkeep"


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a family.

    Attributes:
        family: Its name.
        changed: False if the repository held the whole family already.
        nbytes: Bytes of its files.
    """

    family: str
    changed: bool
    nbytes: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A family in a repository.

    Attributes:
        family, alias, method, input_size, created: As its parameters say.
        complete: Whether all its models are there with their files.
        nbytes: Bytes of its files.
    """

    family: str
    alias: str
    method: str
    input_size: str
    created: str
    complete: bool
    nbytes: int


def write_family(
    family: Family,
    root: Path,
    *,
    force: bool = False,
    export: Callable[[Graph], bytes] = export_graph,
) -> Written:
    """Exports a family into a repository.

    Everything is written into a folder that Triton and the gateway ignore, and then renamed model
    by model, `features` last: until then the family is incomplete, and nobody serves it.

    Args:
        family: What to write.
        root: The repository; made if it is not there.
        force: Whether to replace the family if the repository holds it already.
        export: How a graph becomes ONNX.

    Returns:
        What was done.

    Raises:
        GraphError: A graph cannot be exported.
        RepositoryWriteError: The file system refuses; the repository is as it was.
    """

    def fill(staging: Path) -> None:
        _write_models(family, staging, export)

    return write_models(family.name, publication_order(family), root, fill, force=force)


def write_models(
    family: str,
    order: Sequence[str],
    root: Path,
    fill: Callable[[Path], None],
    *,
    force: bool = False,
) -> Written:
    """Puts the models of a family into a repository, as ``write_family`` promises.

    Args:
        family: Its name.
        order: The names of its models, in the order they appear in.
        root: The repository; made if it is not there.
        fill: Writes the models' folders into the folder that it is given.
        force: Whether to replace the family if the repository holds it already.

    Raises:
        RepositoryWriteError: The file system refuses; the repository is as it was.
    """
    if not force and all(_is_complete(root / name) for name in order):
        return Written(family, changed=False, nbytes=_size_of(root, order))
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{family}-", dir=root))
    except OSError as error:
        raise _refused(family, root, error) from error
    try:
        fill(staging)
        _publish(order, staging, root)
    except OSError as error:
        raise _refused(family, root, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Written(family, changed=True, nbytes=_size_of(root, order))


def remove_other_families(root: Path, family: Family) -> list[str]:
    """Removes the other families of a family's alias, `features` first.

    Args:
        root: The repository.
        family: The one that stays.

    Returns:
        The names of those that were removed.

    Raises:
        RepositoryWriteError: The file system refuses.
    """
    others = [
        listed.family
        for listed in list_families(root)
        if listed.alias == family.alias and listed.family != family.name
    ]
    for name in others:
        remove_family(root, name)
    return others


def remove_family(root: Path, family: str) -> None:
    """Removes a family, `features` first.

    Args:
        root: The repository.
        family: Its name; nothing happens if it is not there.

    Raises:
        RepositoryWriteError: The file system refuses.
    """
    try:
        _remove(root, family)
    except OSError as error:
        raise RepositoryWriteError(
            f"{family} could not be removed from {root} ({error.strerror or error}); "
            "remove its folders by hand."
        ) from error


def _remove(root: Path, family: str) -> None:
    bin_folder = Path(tempfile.mkdtemp(prefix=f".{family}-", dir=root))
    models = [path.name for path in root.iterdir() if path.name.startswith(f"{family}_")]
    try:
        models.sort(key=lambda name: not name.endswith("_features"))
        _move_all(models, root, bin_folder)
    finally:
        shutil.rmtree(bin_folder, ignore_errors=True)


def publication_order(family: Family) -> list[str]:
    """Returns the names of a family's models in the order they appear in, `features` last."""
    return ordered_models(family.name, family.roles)


def ordered_models(family: str, roles: Iterable[str]) -> list[str]:
    """Returns the names of the models with these roles, `features` last."""
    return [f"{family}_{role}" for role in sorted(roles, key=lambda r: (r == "features", r))]


def list_families(root: Path) -> list[Listed]:
    """Lists the families of a repository by name.

    Args:
        root: The repository.

    Raises:
        RepositoryWriteError: It is not a folder.
    """
    if not root.is_dir():
        raise RepositoryWriteError(f"{root} is not a folder; name a model repository.")
    found: dict[str, dict[str, str]] = {}
    for folder in sorted(root.iterdir()):
        parameters = _parameters_of(folder)
        if parameters.get("fewseg.family"):
            found.setdefault(parameters["fewseg.family"], parameters)
    return [_listed(root, name, parameters) for name, parameters in sorted(found.items())]


def _listed(root: Path, name: str, parameters: Mapping[str, str]) -> Listed:
    models = [f"{name}_{role}" for role in parameters.get("fewseg.graphs", "").split(",")]
    return Listed(
        family=name,
        alias=parameters.get("fewseg.alias", ""),
        method=parameters.get("fewseg.method", ""),
        input_size=parameters.get("fewseg.input_size", ""),
        created=parameters.get("fewseg.created", ""),
        complete=all(_is_complete(root / model) for model in models),
        nbytes=_size_of(root, models),
    )


def _parameters_of(folder: Path) -> dict[str, str]:
    path = folder / CONFIG_FILE
    if folder.name.startswith(".") or not path.is_file():
        return {}
    try:
        config = from_text(path.read_text(encoding="utf-8"))
    except (text_format.ParseError, UnicodeDecodeError):
        return {}
    return {key: value.string_value for key, value in config.parameters.items()}


def _is_complete(folder: Path) -> bool:
    """Says whether a model's folder holds its config and, unless it is an ensemble, its graph."""
    if not (folder / CONFIG_FILE).is_file() or not (folder / VERSION).is_dir():
        return False
    try:
        config = from_text((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (text_format.ParseError, UnicodeDecodeError):
        return False
    file = config.default_model_filename or MODEL_FILE
    return config.platform == "ensemble" or (folder / VERSION / file).is_file()


def _size_of(root: Path, names: Iterable[str]) -> int:
    files = (path for name in names for path in (root / name).rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def _write_models(family: Family, staging: Path, export: Callable[[Graph], bytes]) -> None:
    for role, config in model_configs(family).items():
        folder = staging / family.model_name(role)
        (folder / VERSION).mkdir(parents=True)
        write_durably(folder / CONFIG_FILE, to_text(config).encode())
    for ensemble in family.ensembles:
        # Triton wants the version's folder of an ensemble, and git keeps no empty ones.
        write_durably(staging / family.model_name(ensemble.role) / VERSION / KEEP_FILE, b"")
    for graph in family.graphs:
        path = staging / family.model_name(graph.role) / VERSION / MODEL_FILE
        write_durably(path, export(graph))


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file that survives a power cut once a later rename does."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(order: Sequence[str], staging: Path, root: Path) -> None:
    """Replaces what the repository has of a family by what was staged, or changes nothing."""
    retired = staging / "retired"
    retired.mkdir()
    present = [name for name in order if (root / name).exists()]
    _move_all(present[::-1], root, retired)
    try:
        _move_all(order, staging, root)
    except OSError:
        _move_all(present, retired, root)
        raise


def _move_all(names: Sequence[str], source: Path, target: Path) -> None:
    """Renames folders in order; takes the renames back in reverse if one fails."""
    moved: list[str] = []
    try:
        for name in names:
            (source / name).rename(target / name)
            moved.append(name)
    except OSError:
        for name in reversed(moved):
            (target / name).rename(source / name)
        raise


def _refused(family: str, root: Path, error: OSError) -> RepositoryWriteError:
    return RepositoryWriteError(
        f"{family} could not be written to {root} ({error.strerror or error}); the repository is "
        "as it was. Make room or choose another folder with --out, and export again."
    )
