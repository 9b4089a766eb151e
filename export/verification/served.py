# SPDX-License-Identifier: Apache-2.0
"""An episode through the gateway: from raw images and label maps to a mask, as applications ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from export.goldens import Case
from export.verification.driver import UNKNOWN, Application
from fewseg import Annotation, Client, IndexMask, Support


def segment_served(case: Case, repository: Path, model: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Registers the episode's supports as a task and segments its query.

    Args:
        case: The episode.
        repository: Model repository that the in-process service is started on.
        model: Alias of the model.

    Returns:
        The mask uint8 [H, W] and the probabilities float16 [1 + ways, H, W] at the network's size.

    Raises:
        fewseg.FewSegError: The service does not start or refuses a call.
    """
    names = {value: f"way{way}" for way, value in enumerate(case.class_ids)}
    supports = list(_supports(case, names))
    return _segment(repository, model, list(names.values()), supports, case.arrays["query_image"])


def segment_application(
    application: Application, repository: Path, model: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Registers an episode of one way as a task and segments its query; see `segment_served`."""
    supports = [
        Support(image, IndexMask(labels, {1: "object"}, void=[UNKNOWN]))
        for image, labels in zip(application.images, application.labels, strict=True)
    ]
    return _segment(repository, model, ["object"], supports, application.query)


def _segment(
    repository: Path, model: str, classes: Sequence[str], supports: list[Support], query: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    with Client(":embedded:", repository=str(repository), store="memory") as client:
        task = client.register(list(classes), supports, model=model)
        result = client.segment(task, query, size="network", probabilities=True)
    if result.probabilities is None:
        raise ValueError("The service returned no probabilities.")
    return result.mask, result.probabilities


def _supports(case: Case, names: dict[int, str]) -> list[Support]:
    """One support per way and shot, each a shot of its way alone."""
    return [
        Support(
            case.arrays["support_images"][way, shot],
            Annotation(
                [IndexMask(case.arrays["support_labels"][way, shot], names, void=[UNKNOWN])],
                shot_classes=[f"way{way}"],
            ),
            id=f"way{way}-shot{shot}",
        )
        for way in range(case.ways)
        for shot in range(case.shots)
    ]
