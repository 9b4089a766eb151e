"""Taking supports in: checks, ids, digests."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from service.core.annotations import check, digest, is_light, merge, weight
from service.core.calls import Call
from service.core.counts import check_count
from service.core.errors import AlreadyExistsError, FewSegError, OutOfLimitsError
from service.core.limits import Limits
from service.core.requests import BodyDigest
from service.core.timing import Stage
from service.core.types import AnnotationInput, Registration, ShotFusion, Support, SupportInput
from service.core.workers import CodecWorkers

Result = TypeVar("Result")

_NUMBERED = re.compile(r"support-([0-9]{1,9})")


class SupportIntake:
    """Turns supports as callers give them into supports as tasks keep them.

    Args:
        workers: Check annotations: a dense mask has to be decoded for it.
        limits: What a task may hold.
    """

    def __init__(self, workers: CodecWorkers, limits: Limits) -> None:
        self._workers = workers
        self._limits = limits

    async def take(self, given: SupportInput, classes: Sequence[str], call: Call) -> Support:
        """Checks a support against a task's classes; its id may still be empty.

        Raises:
            InvalidArgumentError: The annotation does not fit image or task.
        """
        try:
            with call.clock.measure(Stage.RASTERISE):
                annotation = await self._off_the_loop(
                    given.annotation,
                    partial(check, given.annotation, given.image.size, classes, self._limits),
                )
        except FewSegError as error:
            raise error.within("annotation") from None
        return Support(
            support_id=given.support_id,
            image_digest=given.image.digest,
            image_size=given.image.size,
            annotation=annotation,
            annotation_digest=digest(annotation),
        )

    async def annotate(
        self,
        support: Support,
        given: AnnotationInput,
        classes: Sequence[str],
        call: Call,
        *,
        extend: bool,
    ) -> Support:
        """The support under a new annotation, or under more marks; raises as ``take`` does."""
        size = support.image_size
        try:
            with call.clock.measure(Stage.RASTERISE):
                work = (
                    partial(merge, support.annotation, given, size, classes, self._limits)
                    if extend
                    else partial(check, given, size, classes, self._limits)
                )
                annotation = await self._off_the_loop(given, work)
        except FewSegError as error:
            raise error.within("annotation") from None
        return replace(support, annotation=annotation, annotation_digest=digest(annotation))

    async def _off_the_loop(
        self, annotation: AnnotationInput, work: Callable[[], Result]
    ) -> Result:
        """Works on an annotation: in a thread, unless it takes less time than the way there."""
        return work() if is_light(annotation) else await self._workers.run(work)

    async def digest_of_registration(self, registration: Registration) -> str:
        """SHA-256 of what a registration asks for, in hexadecimal; masks are hashed in a thread."""
        return await self._workers.run(registration_digest, registration)

    async def digest_of_annotation(self, annotation: AnnotationInput, *values: Any) -> str:
        """SHA-256 of a request that sets an annotation, in hexadecimal.

        Args:
            annotation: The annotation.
            *values: All that the request says, the annotation among it.
        """
        return await self._off_the_loop(annotation, lambda: BodyDigest(*values).hexdigest())

    async def count_in(self, body: BodyDigest, given: SupportInput) -> None:
        """Counts a support into the digest of the request that carries it."""
        await self._workers.run(count_in, body, given)

    def check_weight(self, nbytes: int) -> None:
        """Raises OutOfLimitsError (ANNOTATIONS_TOO_LARGE) if a task may not hold so much.

        A task's annotations are in memory together while it is built, so their
        number alone is no bound.
        """
        if nbytes > self._limits.annotation_bytes:
            raise OutOfLimitsError(
                "ANNOTATIONS_TOO_LARGE",
                "The annotations of a task take at most "
                f"{self._limits.annotation_bytes} bytes here; send simpler masks.",
                field="annotation",
            )

    def check_count(self, supports: int, fusion: ShotFusion) -> None:
        """Raises OutOfLimitsError (TOO_MANY_SUPPORTS) if a task may not hold so many."""
        check_count("supports", supports, self._limits.supports, field="supports")
        limit = self._limits.cross_guided_supports
        if fusion is ShotFusion.CROSS_GUIDED and supports > limit:
            raise OutOfLimitsError(
                "TOO_MANY_SUPPORTS",
                f"This server takes at most {limit} supports of a cross-guided task, where each "
                f"judges all and decodes every query; there are {supports}. Send fewer, or "
                "register the task as merged.",
                field="supports",
                metadata={"limit": str(limit), "count": str(supports)},
            )


def weight_of(supports: Iterable[Support]) -> int:
    """Bytes that the annotations of supports take, about."""
    return sum(weight(support.annotation) for support in supports)


def with_ids(supports: Sequence[Support], *, taken: Collection[str]) -> tuple[Support, ...]:
    """Gives ids to supports that have none.

    Raises:
        AlreadyExistsError: An id is taken, or given twice (SUPPORT_EXISTS).
    """
    used = set(taken)
    for index, support in enumerate(supports):
        if support.support_id and support.support_id in used:
            raise AlreadyExistsError(
                "SUPPORT_EXISTS",
                f"There is a support '{support.support_id}' already.",
                field=f"supports[{index}].support_id",
                metadata={"support_id": support.support_id},
            )
        used.add(support.support_id)
    numbers = [int(match[1]) for match in map(_NUMBERED.fullmatch, used) if match]
    following = max(numbers, default=0) + 1
    named = []
    for support in supports:
        if not support.support_id:
            support = replace(support, support_id=f"support-{following}")
            following += 1
        named.append(support)
    return tuple(named)


def registration_digest(registration: Registration) -> str:
    """SHA-256 of what a registration asks for, in hexadecimal."""
    body = BodyDigest(
        registration.tenant,
        registration.task_id,
        registration.display_name,
        registration.model,
        registration.classes,
        str(registration.expiration),
    )
    if registration.fusion is not ShotFusion.MERGED:
        # Only then: what an earlier release remembers has no such value.
        body.add(str(registration.fusion))
    for given in registration.supports:
        count_in(body, given)
    return body.hexdigest()


def count_in(body: BodyDigest, given: SupportInput) -> None:
    """Counts a support into the digest of the request that carries it."""
    body.add(given.support_id, given.image.digest, given.annotation)
