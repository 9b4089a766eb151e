"""Which queries are answered under which supports, and what a served model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewseg.annotations import Support
from fewseg.client import Client
from fewseg.evaluation.marks import AnnotationRule
from fewseg.evaluation.sources import Source
from fewseg.evaluation.tally import Tally
from fewseg.results import Fusion


@dataclass(frozen=True, slots=True)
class Episode:
    """One query under one task.

    Attributes:
        class_name: The task's only class.
        supports: Names of its images.
        query: Name of the image that is segmented.
    """

    class_name: str
    supports: tuple[str, ...]
    query: str


def every_query_once(source: Source, shots: int) -> Iterator[Episode]:
    """Every image of a class is the query once, under the next ``shots`` images, cyclic.

    A query is never among its own supports: a class of ``shots`` images or fewer
    lends all its others.

    Raises:
        ValueError: A class has a single image.
    """
    for class_name, names in source.index.items():
        _check_enough(class_name, len(names), 1)
        lent = min(shots, len(names) - 1)
        for place, query in enumerate(names):
            supports = tuple(names[(place + step) % len(names)] for step in range(1, lent + 1))
            yield Episode(class_name, supports, query)


def random_episodes(source: Source, shots: int, count: int, seed: int) -> Iterator[Episode]:
    """``count`` times a class, then a query and ``shots`` supports of it, all drawn evenly.

    Raises:
        ValueError: A class has too few images.
    """
    index = source.index
    for class_name, names in index.items():
        _check_enough(class_name, len(names), shots)
    chance = np.random.default_rng(seed)
    classes = list(index)
    for _ in range(count):
        class_name = classes[int(chance.integers(len(classes)))]
        names = index[class_name]
        drawn = [names[place] for place in chance.choice(len(names), shots + 1, replace=False)]
        yield Episode(class_name, tuple(drawn[1:]), drawn[0])


def _check_enough(class_name: str, images: int, shots: int) -> None:
    if images <= shots:
        raise ValueError(f"{class_name}: {shots + 1} images are needed, there are {images}.")


def read_model(
    client: Client,
    source: Source,
    episodes: Iterable[Episode],
    rule: AnnotationRule,
    *,
    model: str = "",
    fusion: Fusion = "merged",
    done: Callable[[], object] = lambda: None,
) -> Tally:
    """Answers the episodes of one run through the service, and counts pixels.

    Args:
        client: Where the service is.
        source: Where images and masks are.
        episodes: What to answer.
        rule: How supports are annotated.
        model: Alias of a model; empty for the server's default.
        fusion: How shots become one answer; see ``Client.register``.
        done: Called after each episode.

    Raises:
        FewSegError: The service refused.
        ValueError: The mask of a support shows no pixel of its class. That of a query may.
    """
    tally = Tally()
    for episode in episodes:
        name = episode.class_name
        supports = [
            Support(source.image(image), rule(_shown(source, name, image), name, f"{name}/{image}"))
            for image in episode.supports
        ]
        task = client.register([name], supports, model=model, fusion=fusion, ttl=3600)
        try:
            found = client.segment(task, source.image(episode.query))
        finally:
            client.delete_task(task)
        tally.add(found.mask, source.labels(name, episode.query), [name])
        done()
    return tally


def _shown(source: Source, class_name: str, name: str) -> NDArray[np.uint8]:
    labels = source.labels(class_name, name)
    if not (labels == 1).any():
        raise ValueError(
            f"{name} cannot be a support: its mask shows no pixel of {class_name}. A mask of a"
            " folder is white (above 127) where the class is and black elsewhere, or holds only 0"
            " and 1, with 1 where the class is."
        )
    return labels
