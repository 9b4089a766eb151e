# SPDX-License-Identifier: Apache-2.0
"""The ``fewseg.*`` parameters, as docs/repository.md has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from export.family import SCHEMA

PREFIX: Final = "fewseg."
ROLES: Final = (
    "features", "query_features", "guide", "merge", "decode", "support_encoder", "query_decoder",
)  # fmt: skip
REQUIRED_ROLES: Final = frozenset(ROLES) - {"query_features", "merge"}
ENSEMBLES: Final = frozenset({"support_encoder", "query_decoder"})

#: Merge rules, and what an entry must say besides. What the merge graph makes may have a validity.
_MERGES: Final = {"mean": None, "weighted_mean": "weight", "stack": "validity", "graph": None}
_TARGETS: Final = ("input", "extent", "original", "longest_square", "output")


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda value: compiled.fullmatch(value) is not None


def _one_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def _ascending(value: str) -> bool:
    parts = value.split(",")
    if not all(re.fullmatch(r"[1-9][0-9]*", part) for part in parts):
        return False
    numbers = [int(part) for part in parts]
    return numbers == sorted(set(numbers))


def _roles(value: str) -> bool:
    names = value.split(",")
    return names == sorted(set(names)) and REQUIRED_ROLES <= set(names) <= set(ROLES)


#: Whether a value is right, and what it must be.
_RULES: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "schema": (_one_of(SCHEMA), SCHEMA),
    "family": (_matches(r"[a-z][a-z0-9-]{0,39}-[0-9a-f]{8}"), "<alias>-<digest8>"),
    "alias": (_matches(r"[a-z][a-z0-9-]{0,39}"), "1 to 40 lower-case letters, digits or -"),
    "role": (_one_of(*ROLES), f"one of {', '.join(ROLES)}"),
    "graphs": (_roles, f"sorted, and name at least {', '.join(sorted(REQUIRED_ROLES))}"),
    "method": (_matches(r".+"), "a name"),
    "digest": (_matches(r"[0-9a-f]{64}"), "64 hexadecimal digits"),
    "created": (
        _matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)"),
        "an RFC 3339 time in UTC",
    ),
    "input_size": (_matches(r"native|[1-9][0-9]*x[1-9][0-9]*"), "HxW or native"),
    "input_dtype": (_one_of("uint8", "uint16_8.8"), "uint8 or uint16_8.8"),
    "image_resize": (
        _one_of("pil_bilinear", "cv2_letterbox", "none"), "pil_bilinear, cv2_letterbox or none",
    ),
    "mask_resize": (
        _one_of("pil_nearest", "torch_nearest", "cv2_letterbox_nearest", "none"),
        "pil_nearest, torch_nearest, cv2_letterbox_nearest or none",
    ),
    "class_handling": (_one_of("multiway", "binary"), "multiway or binary"),
    "needs_background": (_one_of("true", "false"), "true or false"),
    "void": (_one_of("background", "unknown"), "background or unknown"),
    "guidance": (_matches(r"(?s)\[.+\]"), "a JSON list of objects"),
    "post_chain": (_matches(r"(?s)\[.+\]"), "a JSON list of objects"),
    "decision": (
        _one_of("argmax", "margin", "any_shot", "vote"), "argmax, margin, any_shot or vote",
    ),
    "threshold": (_matches(r"-?[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?"), "a decimal"),
    "score": (_one_of("softmax", "sigmoid", "linear"), "softmax, sigmoid or linear"),
    "way_buckets": (_ascending, "ascending positive integers, comma-separated"),
    "shot_buckets": (_ascending, "ascending positive integers, comma-separated"),
    "feature_reuse": (
        _one_of("always", "second_use", "never"), "always, second_use or never",
    ),
    "provenance": (_matches(r"(?s)\{.*\}"), "a JSON object of strings"),
}  # fmt: skip

#: As above, for keys that may be left out; they belong to a native input size.
_OPTIONAL: Final = ("min_side", "max_pixels")

#: Roles that ``extent`` may name.
EXTENT_ROLES: Final = ("decode", "guide", "query_features")
_POSITIVE: Final = re.compile(r"[1-9][0-9]*")


def parameters_of(config: Any) -> dict[str, str]:
    """The ``fewseg.*`` parameters of a config, without the prefix."""
    return {
        key.removeprefix(PREFIX): value.string_value
        for key, value in config.parameters.items()
        if key.startswith(PREFIX)
    }


def check_parameters(model: str, values: Mapping[str, str]) -> Iterator[str]:
    """Yields what is wrong with the parameters of one model."""
    sound = True
    for key, (is_right, meaning) in _RULES.items():
        if key not in values:
            sound = False
            yield f"config.pbtxt: {PREFIX}{key} is missing"
        elif not is_right(values[key]):
            sound = False
            yield f"config.pbtxt: {PREFIX}{key} is {values[key]!r}; it must be {meaning}"
    if not sound:
        return
    if model != f"{values['family']}_{values['role']}":
        yield f"config.pbtxt: {PREFIX}family and {PREFIX}role do not make the folder's name"
    if values["family"] != f"{values['alias']}-{values['digest'][:8]}":
        yield f"config.pbtxt: {PREFIX}family is not <alias>-<digest8>"
    yield from _check_coherence(values)
    yield from _check_merge(values)
    for key, check in (("guidance", _check_guidance), ("post_chain", _check_post_chain)):
        for problem in _check_list(values[key], check):
            yield f"config.pbtxt: {PREFIX}{key} {problem}"


def _check_coherence(values: Mapping[str, str]) -> Iterator[str]:
    native = values["input_size"] == "native"
    for key in ("image_resize", "mask_resize"):
        if native != (values[key] == "none"):
            yield f"config.pbtxt: {PREFIX}{key} must be none for a native input, and only for it"
    yield from _check_letterbox(values)
    yield from _check_position_buckets(values)
    for key in _OPTIONAL:
        if key in values and not (native and _POSITIVE.fullmatch(values[key])):
            yield f"config.pbtxt: {PREFIX}{key} must be a positive integer, of a native input only"
    extent = values.get("extent", "decode").split(",")
    if extent != sorted(set(extent) & set(EXTENT_ROLES)):
        yield f"config.pbtxt: {PREFIX}extent must be sorted, of {', '.join(EXTENT_ROLES)}"
    multiway = values["class_handling"] == "multiway"
    for key, value in (("decision", "argmax"), ("score", "softmax")):
        if multiway != (values[key] == value):
            yield f"config.pbtxt: {PREFIX}{key} must be {value} for multiway, and only for it"


def _check_letterbox(values: Mapping[str, str]) -> Iterator[str]:
    letterboxed = values["image_resize"] == "cv2_letterbox"
    if letterboxed != (values["mask_resize"] == "cv2_letterbox_nearest"):
        yield f"config.pbtxt: {PREFIX}mask_resize must letterbox as {PREFIX}image_resize does"
    if not letterboxed:
        return
    if len(set(values["input_size"].split("x"))) != 1:
        yield f"config.pbtxt: {PREFIX}input_size must be a square for cv2_letterbox"
    if values["input_dtype"] != "uint16_8.8":
        yield f"config.pbtxt: {PREFIX}input_dtype must be uint16_8.8 for cv2_letterbox"


def _check_position_buckets(values: Mapping[str, str]) -> Iterator[str]:
    buckets = values.get("position_buckets")
    if (buckets is not None) != ('"positions"' in values["guidance"]):
        yield f"config.pbtxt: {PREFIX}position_buckets must be there for positions, and only then"
    elif buckets is not None and not _ascending(buckets):
        yield f"config.pbtxt: {PREFIX}position_buckets must be ascending positive integers"


def _check_merge(values: Mapping[str, str]) -> Iterator[str]:
    """Yields what is wrong with the inputs of a merge graph; see also ``_check_guidance``."""
    merging = "merge" in values["graphs"].split(",")
    if merging != ("merge_inputs" in values) or ("merge_judged" in values and not merging):
        yield f"config.pbtxt: {PREFIX}merge_inputs must be there for a merge graph, and only then"
    for key in ("merge_inputs", "merge_judged"):
        if key in values and not _names(values[key]):
            yield f"config.pbtxt: {PREFIX}{key} must be a JSON list of different names"
    if merging != ('"graph"' in values["guidance"]):
        yield f"config.pbtxt: {PREFIX}guidance must have the rule graph for a merge graph, and only"


def _names(text: str) -> bool:
    try:
        names = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) and name for name in names)
        and len(set(names)) == len(names)
    )


def _check_list(text: str, check: Callable[[list[dict[str, Any]]], Iterator[str]]) -> Iterator[str]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        yield f"is not JSON: {error}"
        return
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        yield "must be a JSON list of objects"
        return
    yield from check(entries)


def _check_guidance(entries: list[dict[str, Any]]) -> Iterator[str]:
    names = [entry.get("name") for entry in entries]
    if len(set(names)) != len(names) or not all(names):
        yield "must give each tensor a name of its own"
    for index, entry in enumerate(entries):
        if entry.get("merge") not in _MERGES:
            yield f"[{index}] has no merge rule of {', '.join(_MERGES)}"
            continue
        if entry.get("ways") not in ("background_and_ways", "ways", "none"):
            yield f"[{index}] must say background_and_ways, ways or none"
        for rule, companion in _MERGES.items():
            optional = entry["merge"] == "graph" and companion == "validity"
            if companion and not optional and (companion in entry) != (entry["merge"] == rule):
                yield f"[{index}] must have {companion!r} for {rule}, and only for it"
        if "positions" in entry and (entry["positions"] is not True or entry["merge"] != "stack"):
            yield f"[{index}] may say that positions is true, for stack only"


def _check_post_chain(entries: list[dict[str, Any]]) -> Iterator[str]:
    for index, entry in enumerate(entries):
        if entry.get("op") not in ("resize", "deconvolve", "crop"):
            yield f"[{index}] must be a resize, deconvolve or crop"
        elif entry["op"] == "deconvolve":
            if not isinstance(entry.get("factor"), int):
                yield f"[{index}] must have a whole factor"
        elif entry.get("target") not in _TARGETS:
            yield f"[{index}] must go to one of {', '.join(_TARGETS)}"
        elif entry["op"] == "resize" and entry.get("mode") not in ("half_pixel", "align_corners"):
            yield f"[{index}] must resize by half_pixel or align_corners"
    ends = [entry.get("target") == "output" for entry in entries]
    if ends != [False] * (len(ends) - 1) + [True]:
        yield "must go to output in its last step, and only there"
