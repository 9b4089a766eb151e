# SPDX-License-Identifier: Apache-2.0
"""The ``fewseg.*`` parameters of one config, read one value at a time (docs/repository.md)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, NoReturn, TypeVar

from service.core.errors import RepositoryError
from service.core.types import Size
from service.engines.config_files import ModelConfig, config_path

PREFIX: Final = "fewseg."
SCHEMA: Final = "1"

#: What every model of a family carries.
KEYS: Final = frozenset(
    {
        "fewseg.schema",
        "fewseg.family",
        "fewseg.alias",
        "fewseg.role",
        "fewseg.graphs",
        "fewseg.method",
        "fewseg.digest",
        "fewseg.created",
        "fewseg.input_size",
        "fewseg.input_dtype",
        "fewseg.image_resize",
        "fewseg.mask_resize",
        "fewseg.class_handling",
        "fewseg.needs_background",
        "fewseg.void",
        "fewseg.guidance",
        "fewseg.post_chain",
        "fewseg.decision",
        "fewseg.threshold",
        "fewseg.score",
        "fewseg.way_buckets",
        "fewseg.shot_buckets",
        "fewseg.feature_reuse",
        "fewseg.provenance",
    }
)

_EnumT = TypeVar("_EnumT", bound=Enum)
_ItemT = TypeVar("_ItemT")
_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_DECIMAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?")
_POSITIVE: Final = re.compile(r"[1-9][0-9]{0,11}")
_DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)")


def parameters_of(config: ModelConfig) -> dict[str, str]:
    """The ``fewseg.*`` parameters of a config; empty for a model of somebody else."""
    return {
        key: value.string_value
        for key, value in config.parameters.items()
        if key.startswith(PREFIX)
    }


class Parameters:
    """Reads the parameters of one model strictly.

    Every error is a ``RepositoryError`` (reason CONFIG_INVALID) that names file and key.

    Args:
        model: The model's name.
        values: Its ``fewseg.*`` parameters.
    """

    def __init__(self, model: str, values: Mapping[str, str]) -> None:
        self._file = config_path(model)
        self._values = values

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises the error that ``key`` has a problem."""
        raise RepositoryError("CONFIG_INVALID", f"{self._file}: {PREFIX}{key} {problem}.")

    def has(self, key: str) -> bool:
        """Whether the key is there, for those that may be left out."""
        return PREFIX + key in self._values

    def text(self, key: str) -> str:
        """A value that is not empty."""
        value = self._values.get(PREFIX + key, "")
        if not value:
            self.fail(key, "is missing")
        return value

    def matching(self, key: str, pattern: re.Pattern[str], meaning: str) -> str:
        """A value of a certain form."""
        value = self.text(key)
        if not pattern.fullmatch(value):
            self.fail(key, f"must be {meaning}, not {value!r}")
        return value

    def choice(self, key: str, kind: type[_EnumT]) -> _EnumT:
        """One of the values of ``kind``."""
        value = self.text(key)
        return self._member(key, kind, value)

    def choices(self, key: str, kind: type[_EnumT]) -> tuple[_EnumT, ...]:
        """Several values of ``kind``, comma-separated and sorted."""
        names = self.text(key).split(",")
        if names != sorted(set(names)):
            self.fail(key, "must be sorted and without repetition")
        return tuple(self._member(key, kind, name) for name in names)

    def flag(self, key: str) -> bool:
        """``true`` or ``false``."""
        value = self.text(key)
        if value not in ("true", "false"):
            self.fail(key, f"must be true or false, not {value!r}")
        return value == "true"

    def number(self, key: str) -> float:
        """A finite decimal."""
        value = float(self.matching(key, _DECIMAL, "a decimal"))
        if not math.isfinite(value):
            self.fail(key, "must be finite")
        return value

    def moment(self, key: str) -> datetime:
        """An RFC 3339 moment in UTC."""
        value = self.matching(key, _DATE_TIME, "an RFC 3339 time in UTC")
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except ValueError:
            self.fail(key, f"must be an RFC 3339 time in UTC, not {value!r}")

    def size(self, key: str) -> Size | None:
        """``HxW``, or None for ``native``."""
        if self.text(key) == "native":
            return None
        self.matching(key, _SIZE, "HxW or native")
        height, width = map(int, self.text(key).split("x"))
        return Size(height, width)

    def ascending(self, key: str) -> tuple[int, ...]:
        """Ascending positive integers, comma-separated."""
        parts = self.text(key).split(",")
        numbers = tuple(int(part) for part in parts if part.isascii() and part.isdecimal())
        if len(numbers) != len(parts) or numbers[0] < 1 or list(numbers) != sorted(set(numbers)):
            self.fail(key, "must be ascending positive integers, comma-separated")
        return numbers

    def positive(self, key: str) -> int | None:
        """A positive integer, or None where the key may be left out and is."""
        if not self.has(key):
            return None
        return int(self.matching(key, _POSITIVE, "a positive integer"))

    def names(self, key: str) -> tuple[str, ...]:
        """A JSON list of different names; none where the key may be left out and is."""
        if PREFIX + key not in self._values:
            return ()
        value = self._json(key)
        if not isinstance(value, list) or not value or len(set(map(repr, value))) != len(value):
            self.fail(key, "must be a JSON list of different names")
        if not all(isinstance(name, str) and name for name in value):
            self.fail(key, "must be a JSON list of different names")
        return tuple(value)

    def entries(self, key: str, read: Callable[[Entry], _ItemT]) -> tuple[_ItemT, ...]:
        """A JSON list of objects, one or more, each read by ``read``."""
        values = self._json(key)
        if not isinstance(values, list) or not values:
            self.fail(key, "must be a JSON list with at least one object")
        items = []
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                self.fail(key, f"[{index}] must be an object")
            entry = Entry(self, key, index, value)
            items.append(read(entry))
            entry.finish()
        return tuple(items)

    def strings(self, key: str) -> dict[str, str]:
        """A JSON object of strings."""
        value = self._json(key)
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            self.fail(key, "must be a JSON object of strings")
        return value

    def _json(self, key: str) -> Any:
        try:
            return json.loads(self.text(key))
        except ValueError as error:
            self.fail(key, f"is not JSON: {error}")

    def _member(self, key: str, kind: type[_EnumT], value: str) -> _EnumT:
        try:
            return kind(value)
        except ValueError:
            allowed = ", ".join(str(member.value) for member in kind)
            self.fail(key, f"is {value!r}; it must be one of: {allowed}")


class Entry:
    """One object of a JSON list; its errors name file, key, index and member."""

    def __init__(
        self, parameters: Parameters, key: str, index: int, values: Mapping[str, Any]
    ) -> None:
        self._parameters = parameters
        self._key = key
        self._index = index
        self._values = dict(values)

    def fail(self, problem: str) -> NoReturn:
        """Raises the error that this object has a problem."""
        self._parameters.fail(self._key, f"[{self._index}] {problem}")

    def text(self, member: str) -> str:
        """A member that must be there."""
        value = self.optional_text(member)
        if value is None:
            self.fail(f"lacks {member!r}")
        return value

    def optional_text(self, member: str) -> str | None:
        """A member that may be there; a string that is not empty."""
        value = self._values.pop(member, None)
        if value is not None and (not isinstance(value, str) or not value):
            self.fail(f"{member!r} must be a string")
        return value

    def choice(self, member: str, kind: type[_EnumT]) -> _EnumT:
        """A member that must be there, one of the values of ``kind``."""
        value = self.text(member)
        try:
            return kind(value)
        except ValueError:
            allowed = ", ".join(str(choice.value) for choice in kind)
            self.fail(f"{member!r} is {value!r}; it must be one of: {allowed}")

    def flag(self, member: str) -> bool:
        """A member that may be there, true or false; false where it is not."""
        value = self._values.pop(member, False)
        if not isinstance(value, bool):
            self.fail(f"{member!r} must be true or false")
        return value

    def integer(self, member: str) -> int:
        """A positive integer that must be there."""
        value = self._values.pop(member, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fail(f"{member!r} must be a positive integer")
        return value

    def finish(self) -> None:
        """Refuses members that nobody asked for."""
        if self._values:
            self.fail(f"has unknown members: {', '.join(sorted(self._values))}")
