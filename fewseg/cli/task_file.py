"""A whole task in a JSON file; docs/cli.md describes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from fewseg.annotations import (
    Annotation,
    Box,
    IndexMask,
    Mark,
    Points,
    Polygon,
    RunLengthMask,
    Scribble,
    Support,
)
from fewseg.cli.marks import label_of
from fewseg.results import Fusion

Value = TypeVar("Value")

_FUSIONS: Final[dict[str, Fusion]] = {"merged": "merged", "cross-guided": "cross_guided"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class TaskFile:
    """What a task file says; empty where it says nothing."""

    task_id: str
    classes: tuple[str, ...]
    model: str
    display_name: str
    ttl: timedelta | None
    fusion: Fusion
    supports: tuple[Support, ...]


class _Fields:
    """An object of the file whose keys are taken one by one, so that none is overlooked."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object.")
        self._left = dict(value)

    def take(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """The value of a key; without a default it must be there."""
        value = self._left.pop(key, default)
        if value is None:
            raise ValueError(f"{self.where}: {key!r} is missing.")
        return self._checked(key, value, kind)

    def find(self, key: str, kind: type[Value]) -> Value | None:
        """The value of a key, or None."""
        value = self._left.pop(key, None)
        return None if value is None else self._checked(key, value, kind)

    def finish(self) -> None:
        """Refuses keys that nobody took."""
        if self._left:
            raise ValueError(f"{self.where}: there is no key {sorted(self._left)[0]!r}.")

    def _checked(self, key: str, value: Any, kind: type[Value]) -> Value:
        accepted: Any = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.where}: {key!r} must be {_KIND_NAMES[kind]}.")
        checked: Value = value
        return checked


_KIND_NAMES: Final[dict[type, str]] = {
    str: "a text",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def read_task_file(path: Path) -> TaskFile:
    """Reads a task file; its relative paths count from its folder.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a task file; the message says where it is wrong.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    fields = _Fields(document, str(path))
    ttl = fields.find("ttl", str)
    file = TaskFile(
        task_id=fields.take("task_id", str, ""),
        classes=_texts(fields, "classes"),
        model=fields.take("model", str, ""),
        display_name=fields.take("display_name", str, ""),
        ttl=None if ttl is None else duration_of(ttl),
        fusion=fusion_of(fields.take("fusion", str, "merged")),
        supports=tuple(
            _support(item, f"{path}: supports[{index}]", path.parent)
            for index, item in enumerate(fields.take("supports", list))
        ),
    )
    fields.finish()
    return file


def duration_of(text: str) -> timedelta:
    """Reads "90s", "15m", "2h" or "7d".

    Raises:
        ValueError: It is not written like that.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise ValueError(f"A time is written 90s, 15m, 2h or 7d, not {text!r}.")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


def fusion_of(text: str) -> Fusion:
    """Reads "merged" or "cross-guided".

    Raises:
        ValueError: It is neither.
    """
    if text not in _FUSIONS:
        raise ValueError(f"Shots are {' or '.join(_FUSIONS)}, not {text!r}.")
    return _FUSIONS[text]


def _texts(fields: _Fields, key: str) -> tuple[str, ...]:
    items = fields.take(key, list, [])
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{fields.where}: {key!r} must be a list of texts.")
    return tuple(items)


def _support(item: Any, where: str, folder: Path) -> Support:
    fields = _Fields(item, where)
    image, identifier = folder / fields.take("image", str), fields.take("id", str, "")
    mask = fields.find("mask", str)
    if mask is not None:
        fields.finish()
        return Support(image, folder / mask, identifier)
    annotation = Annotation(
        marks=tuple(
            _mark(mark, f"{where}.marks[{index}]", folder)
            for index, mark in enumerate(fields.take("marks", list))
        ),
        exhaustive=fields.find("exhaustive", bool),
        shot_classes=_texts(fields, "shot_classes"),
    )
    fields.finish()
    return Support(image, annotation, identifier)


def _mark(item: Any, where: str, folder: Path) -> Mark:
    fields = _Fields(item, where)
    kind = fields.take("type", str)
    if kind not in _MARKS:
        raise ValueError(f"{where}: there is no mark {kind!r}; there are: {', '.join(_MARKS)}.")
    try:
        mark = _MARKS[kind](fields, folder)
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from error
    fields.finish()
    return mark


def _index_mask(fields: _Fields, folder: Path) -> Mark:
    values = fields.take("values", dict)
    return IndexMask(
        folder / fields.take("file", str),
        {int(value): str(name) for value, name in values.items()},
        tuple(int(value) for value in fields.take("void", list, [])),
    )


def _run_lengths(fields: _Fields, _: Path) -> Mark:
    counts = fields.take("counts", object)
    if not isinstance(counts, str | list):
        raise ValueError("'counts' must be a text or a list.")
    size = fields.take("size", list)
    return RunLengthMask({"size": size, "counts": counts}, label_of(fields.take("class", str)))


def _polygon(fields: _Fields, _: Path) -> Mark:
    return Polygon(fields.take("rings", list), label_of(fields.take("class", str)))


def _points(fields: _Fields, _: Path) -> Mark:
    return Points(
        fields.take("points", list),
        label_of(fields.take("class", str)),
        fields.take("radius", float, 0.0),
    )


def _scribble(fields: _Fields, _: Path) -> Mark:
    return Scribble(
        fields.take("vertices", list),
        label_of(fields.take("class", str)),
        fields.take("width", float, 0.0),
    )


def _box(fields: _Fields, _: Path) -> Mark:
    sides = fields.take("box", list)
    if len(sides) != 4:
        raise ValueError("'box' must be [x_min, y_min, x_max, y_max].")
    x_min, y_min, x_max, y_max = sides
    return Box(x_min, y_min, x_max, y_max, label_of(fields.take("class", str)))


_MARKS: Final[dict[str, Callable[[_Fields, Path], Mark]]] = {
    "mask": _index_mask,
    "run_lengths": _run_lengths,
    "polygon": _polygon,
    "points": _points,
    "scribble": _scribble,
    "box": _box,
}
