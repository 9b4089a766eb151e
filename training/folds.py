# SPDX-License-Identifier: Apache-2.0
"""Which classes a held-out run leaves out, so that it is tested on what it never saw."""

from __future__ import annotations

from collections.abc import Iterable

from training.pack import Entry

FOLDS = 3

SETS = ("coco-mini", "ccp-fashion", "davis16-20x10", "magnetic-tile")

COCO_FOLDS = (
    frozenset(
        {"airplane", "boat", "chair", "dining_table", "dog", "elephant", "microwave"}
        | {"parking_meter", "person", "refrigerator", "sandwich", "suitcase", "wine_glass"}
    ),
    frozenset(
        {"bear", "bench", "bicycle", "book", "bowl", "bus", "couch", "cup", "horse", "orange"}
        | {"oven", "pizza", "teddy_bear", "toilet", "umbrella"}
    ),
)
"""Classes of COCO-20i's folds 0 and 1 (index modulo 4) that `coco-mini` has; the rest is fold 2."""

SAME_THINGS = {
    "person": ("human", "pennfudan", "breakdance", "dance-twirl", "parkour"),
    "horse": ("horse", "horsejump-high"),
    "dog": ("libby",),
    "car": ("car-roundabout", "car-shadow", "drift-chicane", "drift-straight"),
    "bird": ("blackswan",),
}
"""Classes of other sets that show a class of COCO under another name."""


def left_out(entries: Iterable[Entry], fold: int) -> dict[str, frozenset[str]]:
    """Returns {set: classes} that the held-out run of a fold never draws and is tested on.

    Args:
        entries: What a pack holds.
        fold: 0, 1 or 2: COCO's folds; of sets without folds every third class, in their order.
    """
    classes: dict[str, list[str]] = {name: [] for name in SETS}
    for entry in entries:
        if entry.origin in classes and entry.category not in classes[entry.origin]:
            classes[entry.origin].append(entry.category)
    found = {}
    for name, listed in classes.items():
        if name == "coco-mini":
            found[name] = frozenset(kind for kind in listed if coco_fold(kind) == fold)
        else:
            found[name] = frozenset(sorted(listed)[fold::FOLDS])
    return found


def coco_fold(kind: str) -> int:
    """The fold of a class of `coco-mini`."""
    for fold, listed in enumerate(COCO_FOLDS):
        if kind in listed:
            return fold
    return 2


def same_things(kinds: Iterable[str]) -> frozenset[str]:
    """The classes, and all that show the same things under another name."""
    named = frozenset(kinds)
    alike = [frozenset({name, *others}) for name, others in SAME_THINGS.items()]
    return named.union(*(group for group in alike if group & named))


def never_drawn(entries: Iterable[Entry], fold: int) -> frozenset[str]:
    """All classes that the held-out run of a fold never draws: what is tested, by any name."""
    return same_things(frozenset[str]().union(*left_out(entries, fold).values()))
