# SPDX-License-Identifier: Apache-2.0
"""An episode through the gateway: from raw images and label maps to a mask, as applications ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from export.goldens import Case
from export.verification.driver import EMBEDDED, UNKNOWN, Application, Gateway
from fewseg import Annotation, Client, IndexMask, Support

Array = NDArray[Any]

TIMEOUT = 300.0
"""Seconds that a call may take: networks of a hundred megabytes run on whatever machine this is."""


def segment_served(
    case: Case, repository: Path, model: str, gateway: Gateway = EMBEDDED
) -> tuple[Array, Array]:
    """Registers the episode's supports as a task and segments its query.

    Args:
        case: The episode.
        repository: Model repository that the in-process service is started on.
        model: Alias of the model.
        gateway: What serves it.

    Returns:
        The mask uint8 [H, W] and the probabilities float16 [1 + ways, H, W] at the network's size.

    Raises:
        fewseg.FewSegError: The service does not start or refuses a call.
    """
    names = {value: f"way{way}" for way, value in enumerate(case.class_ids)}
    supports = list(_supports(case, names))
    with _client(repository, gateway) as client:
        query = case.arrays["query_image"]
        return _segment(client, model, list(names.values()), supports, query)


def segment_application(
    application: Application, repository: Path, model: str, gateway: Gateway = EMBEDDED
) -> tuple[Array, Array]:
    """Registers an episode of one way as a task and segments its query; see `segment_served`."""
    supports = [
        Support(image, IndexMask(labels, {1: "object"}, void=[UNKNOWN]))
        for image, labels in zip(application.images, application.labels, strict=True)
    ]
    with _client(repository, gateway) as client:
        query, size = application.query, application.size
        return _segment(client, model, ["object"], supports, query, size=size)


def _client(repository: Path, gateway: Gateway) -> Client:
    """A client of a service in this process."""
    options: dict[str, Any] = {"repository": str(repository), "store": "memory"}
    if gateway.triton:
        options |= {"engine": "triton", "triton_address": (gateway.triton,)}
    return Client(":embedded:", timeout=TIMEOUT, **options)


def _segment(
    client: Client,
    model: str,
    classes: Sequence[str],
    supports: list[Support],
    query: Array,
    *,
    size: Literal["network", "original"] = "network",
) -> tuple[Array, Array]:
    task = client.register(list(classes), supports, model=model)
    result = client.segment(task, query, size=size, probabilities=True)
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
