# SPDX-License-Identifier: Apache-2.0
"""Verifies HSNet from an official checkpoint to the mask that an application gets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, read_model_keys, seeded_checkpoint
from export.hsnet_family import hsnet_checkpoint, hsnet_family
from export.methods.hsnet.graphs import HsnetDecode, HsnetFeatures, Level
from export.verification.comparing import HALF_PRECISION, sigmoid, worst
from export.verification.driver import EMBEDDED, INPUT, Application, Gateway, Method, verify
from export.verification.episode import network_image
from export.verification.measures import Measure
from export.verification.scores import resized
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

INPUT_TOLERANCE = 1e-5
"""Of the normalised image, whose values lie within +-3."""

FEATURE_TOLERANCE = 1e-3 + 2 * HALF_PRECISION
"""Of taps, relative to a value and the deviation of its layer; vectors and lengths are rounded."""

CORRELATION_TOLERANCE = 1e-4
"""Of cosines."""

SCORE_TOLERANCE = 2e-3
"""Of margins."""

TIE = 1e-2
"""Margin under which two computations may decide differently."""

DIFFERING_SHARE = 2e-3
"""Of pixels, ties among them."""

_LEVELS = ("fine", "middle", "coarse")


def verify_hsnet(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    return verify(HSNET, goldens, names=names, gateway=gateway, repository=repository)


class _Hsnet:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        return golden.facts["weight_seed"], golden.facts["backbone"], golden.facts["size"]

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        checkpoint = folder / "best_model.pt"
        _save_checkpoint(golden, goldens, checkpoint)
        return hsnet_family(
            alias="hsnet", network=hsnet_checkpoint(checkpoint), size=_size(golden), provenance={}
        )

    def episode(self, golden: Golden) -> Episode:
        arrays, size = golden.arrays, _size(golden)
        supports = []
        for image, mask in zip(
            arrays["raw_support_u8"], arrays["raw_support_masks_u8"], strict=True
        ):
            small = _network_mask(mask, size)
            planes = np.stack([small == 0, small == 1]).astype(np.float32)
            supports.append((network_image(image, size), planes))
        return Episode(supports, network_image(arrays["raw_query_u8"], size))

    def application(self, golden: Golden) -> Application:
        arrays = golden.arrays
        return Application(
            list(arrays["raw_support_u8"]),
            list(arrays["raw_support_masks_u8"]),
            arrays["raw_query_u8"],
        )

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        episode, features = self.episode(golden), family.graphs[0].module
        assert isinstance(features, HsnetFeatures)
        middle = _size(golden)[0] // 2 - 24
        for name, image, start in (
            ("query", episode.query, 0),
            ("support0", episode.supports[0][0], middle),
        ):
            values = features.normalise(torch.tensor(image)[None])[0].numpy()
            window = values[:, start : start + 48, start : start + 48]
            error = worst(window, golden.arrays[f"net_{name}_f32_crop"])
            yield Measure(golden.name, INPUT, f"{name} tensor", error, INPUT_TOLERANCE)
        masks = np.stack([planes[1] for _, planes in episode.supports])
        wrong = float((masks != golden.arrays["resized_support_masks_u8"]).sum())
        yield Measure(golden.name, INPUT, "masks, pixels", wrong, 0.0)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        decode = family.graphs[-1].module
        assert isinstance(decode, HsnetDecode)
        yield _measure_taps(golden, decode.levels, outcome, stage)
        yield _measure_correlations(golden, decode.levels, outcome, stage)
        margins = outcome.logits[0]
        error = worst(margins, _golden_margins(golden))
        yield Measure(golden.name, stage, "scores", error, SCORE_TOLERANCE)
        votes = resized(margins, _size(golden), align_corners=True) > 0
        packed = golden.arrays["argmax_per_shot_packed"]
        wanted = np.unpackbits(packed, axis=-1, count=_size(golden)[1]).astype(bool)
        decided = np.abs(_raised_margins(golden)) > TIE
        wrong = float(((votes != wanted) & decided).sum())
        yield Measure(golden.name, stage, "mask of each shot, pixels", wrong, 0.0)
        yield from _measure_mask(golden, _elected(votes), stage)

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        yield from _measure_mask(golden, mask, stage)
        wanted = sigmoid(_raised_margins(golden).mean(axis=0, dtype=np.float64))
        error = worst(probabilities[0].astype(np.float64), wanted)
        # A logistic function passes on a quarter of a margin's error.
        allowed = SCORE_TOLERANCE / 4 + HALF_PRECISION
        yield Measure(golden.name, stage, "probabilities", error, allowed)


HSNET: Method = _Hsnet()


def _save_checkpoint(golden: Golden, goldens: Path, path: Path) -> None:
    """Saves the seeded weights of a case as official training does."""
    keys = read_model_keys(goldens, golden.facts["backbone"])
    shapes = {key: entry.shape for key, entry in keys.items()}
    tensors = seeded_checkpoint(shapes, golden.facts["weight_seed"])
    torch.save({f"module.{key}": value for key, value in tensors.items()}, path)


def _measure_taps(golden: Golden, levels: Sequence[Level], outcome: Outcome, stage: str) -> Measure:
    """Compares windows of the query's taps, which vectors times lengths give back."""
    errors, number = [], 0
    for name, level in zip(_LEVELS, levels, strict=True):
        rows = outcome.features[name].astype(np.float32)
        units = rows[:, : level.width].reshape(level.rows, level.columns, level.taps, -1)
        lengths = rows[:, level.width :].reshape(level.rows, level.columns, level.taps, 1)
        taps = (units * lengths).transpose(2, 3, 0, 1)
        top, left = level.rows // 2 - 2, level.columns // 2 - 2
        for tap in taps[:, :6, top : top + 4, left : left + 4]:
            wanted = golden.arrays[f"feat_q_{number:02}"]
            spread = golden.arrays[f"feat_stats_{number:02}"][0, 1]
            errors.append(float((np.abs(tap - wanted) / (np.abs(wanted) + spread)).max()))
            number += 1
    return Measure(golden.name, stage, "query taps", max(errors), FEATURE_TOLERANCE)


def _measure_correlations(
    golden: Golden, levels: Sequence[Level], outcome: Outcome, stage: str
) -> Measure:
    """Compares cosines of the query with the first shot: whole, or a window."""
    errors = []
    for name, level, key in zip(
        _LEVELS, levels, ("corr2_shot0_crop", "corr3_shot0_crop", "corr4_shot0"), strict=True
    ):
        units = outcome.features[name][:, : level.width].astype(np.float32)
        query = units.reshape(level.rows, level.columns, level.taps, level.channels)
        wanted = golden.arrays[key]
        if key.endswith("crop"):
            top, left = level.rows // 2, level.columns // 2
            query = query[top : top + 2, left : left + 2]
        places = outcome.shots[0][f"{name}_places"][0].astype(np.int64)
        stored = outcome.shots[0][f"{name}_positions"][0].astype(np.float32)
        masked = np.where(places[:, None] < 0, 0, stored[places])
        shot = masked.reshape(level.rows, level.columns, level.taps, level.channels)
        cosines = np.einsum("abtc,xytc->tabxy", query, shot, optimize=True).clip(min=0)
        rounding = HALF_PRECISION if wanted.dtype == np.float16 else 0.0
        errors.append(worst(cosines, wanted) - rounding)
    return Measure(golden.name, stage, "correlations", max(errors), CORRELATION_TOLERANCE)


def _measure_mask(golden: Golden, mask: Array, stage: str) -> Iterator[Measure]:
    """Counts pixels that differ: where every shot was sure, and in all."""
    differing = mask != golden.arrays["pred_mask_u8"]
    decided = (np.abs(_raised_margins(golden)) > TIE).all(axis=0)
    wrong = float((differing & decided).sum())
    yield Measure(golden.name, stage, "mask, pixels", wrong, 0.0)
    share = float(differing.mean())
    yield Measure(golden.name, stage, "mask, share", share, DIFFERING_SHARE)


def _elected(votes: Array) -> Array:
    """The official vote over masks [shots, H, W]: uint8 [H, W]."""
    counts = votes.sum(axis=0)
    return np.asarray(counts / max(1, counts.max()) >= 0.5, np.uint8)


def _golden_margins(golden: Golden) -> Array:
    """Golden margins [shots, h, w] on the network's grid."""
    logits: Array = golden.arrays["logits_small_f32"]
    return logits[:, 1] - logits[:, 0]


def _raised_margins(golden: Golden) -> Array:
    """Golden margins [shots, H, W] at the network's size."""
    return resized(_golden_margins(golden), _size(golden), align_corners=True)


def _network_mask(mask: Array, size: tuple[int, int]) -> Array:
    """Resizes labels [H, W] as the official code does: torch's nearest."""
    planes = torch.from_numpy(mask)[None, None].float()
    small = torch.nn.functional.interpolate(planes, size=size, mode="nearest")
    values: Array = small[0, 0].numpy()
    return values


def _size(golden: Golden) -> tuple[int, int]:
    return golden.facts["size"], golden.facts["size"]
