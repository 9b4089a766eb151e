"""Registering tasks and changing their support sets."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from service.core.admission import Admission
from service.core.calls import Call, finished, running
from service.core.catalog import Catalog
from service.core.committing import TaskCommitter, class_without_pixels, summaries
from service.core.directory import TaskDirectory
from service.core.errors import (
    FailedPreconditionError,
    FewSegError,
    InvalidArgumentError,
    NotFoundError,
)
from service.core.family import ModelFamily
from service.core.guidance import GuidanceBuilder
from service.core.intake import SupportIntake, weight_of, with_ids
from service.core.ports import RememberedRequest, Store, TaskChange, Telemetry
from service.core.put_images import Put, PutImages
from service.core.refusals import support_not_found, task_exists, task_not_found
from service.core.requests import BodyDigest, KeyedLocks, RequestId, RequestMemory
from service.core.shots import infers_background
from service.core.timing import Stage
from service.core.types import (
    AnnotationInput,
    Registration,
    SourceImage,
    Support,
    SupportInput,
    TaskHeader,
    TaskName,
    TaskRecord,
    TaskReport,
)

_CREATE_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Edit:
    """What a change does to a support set.

    Attributes:
        supports: The whole set after it.
        upserted, removed: What the store has to do.
        judged: Ids of the supports whose agreement is reported.
        field: The field at fault if a class is left without a pixel.
    """

    supports: tuple[Support, ...]
    upserted: tuple[Support, ...] = ()
    removed: tuple[str, ...] = ()
    judged: Collection[str] = field(default=())
    field: str | None = None


class Tasks:
    """The tasks of this server.

    Args:
        admission: Who may run.
        directory: Finds tasks.
        catalog: Finds families.
        builder: Guidance.
        committer: Completes changes.
        store: Keeps support sets.
        requests: Remembers request ids.
        intake: Checks supports.
        telemetry: Hears stages and the number of tasks.
        now: The clock, UTC.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        directory: TaskDirectory,
        catalog: Catalog,
        builder: GuidanceBuilder,
        committer: TaskCommitter,
        store: Store,
        requests: RequestMemory,
        intake: SupportIntake,
        telemetry: Telemetry,
        now: Callable[[], datetime],
    ) -> None:
        self._admission = admission
        self._directory = directory
        self._catalog = catalog
        self._builder = builder
        self._committer = committer
        self._store = store
        self._images = PutImages(store)
        self._requests = requests
        self._intake = intake
        self._telemetry = telemetry
        self._now = now
        self._locks = KeyedLocks()

    async def register(self, registration: Registration, call: Call) -> TaskReport:
        """Registers a task; once this returns, the task is kept.

        Raises:
            InvalidArgumentError: An annotation or image is wrong, or a class has no
                positive pixel (CLASS_WITHOUT_PIXELS).
            AlreadyExistsError: The name is taken (TASK_EXISTS), or the request id is.
            NotFoundError: No such tenant or model.
        """
        request = RequestId(registration.tenant, "RegisterTask", registration.request_id)
        # Without an id, nobody will ask what the request said.
        body = await self._intake.digest_of_registration(registration) if request.value else ""
        # The slot is taken last: who waits for another request holds none.
        async with (
            running(call, self._telemetry),
            self._requests.once(request) as remembered,
            self._admission.slot(call),
        ):
            if remembered is not None:
                return self._requests.replay(remembered, body)
            self._directory.check_tenant(registration.tenant)
            self._intake.check_count(len(registration.supports), registration.fusion)
            try:
                with self._catalog.lease(registration.model) as family:
                    return await self._register(registration, family, request, body, call)
            except NotFoundError as error:
                if error.reason == "UNKNOWN_MODEL":
                    raise error.within("task.model") from None
                raise

    async def _register(
        self,
        registration: Registration,
        family: ModelFamily,
        request: RequestId,
        body: str,
        call: Call,
    ) -> TaskReport:
        header = self._new_header(registration, family)
        if not await self._directory.is_free(header.name, call):
            raise task_exists(header.name)
        supports = []
        for index, given in enumerate(registration.supports):
            try:
                supports.append(await self._intake.take(given, header.classes, call))
            except FewSegError as error:
                raise error.within(f"supports[{index}]") from None
        self._intake.check_weight(weight_of(supports))
        record = TaskRecord(header, with_ids(supports, taken=()))
        images = {given.image.digest: given.image for given in registration.supports}
        shot_set = await self._builder.shots(
            family,
            header,
            record.supports,
            call,
            images=images,
            field_of=lambda index: f"supports[{index}].image",
        )
        if shot_set.missing:
            raise InvalidArgumentError(*class_without_pixels(shot_set, family), field="supports")
        record = TaskRecord(replace(header, background=shot_set.background), record.supports)
        judged = [support.support_id for support in record.supports]

        async def commit(remember: RememberedRequest | None) -> None:
            try:
                async with self._images.of_call(header.name.tenant) as put:
                    await self._create(record, images.values(), put, remember)
            finally:
                self._directory.forget(header.name)

        report = await self._committer.complete(
            family, record, shot_set, judged, request, body, commit, call
        )
        self._telemetry.tasks(await self._store.count())
        return report

    async def _create(
        self,
        record: TaskRecord,
        images: Collection[SourceImage],
        put: Put,
        remember: RememberedRequest | None,
    ) -> None:
        """Keeps images and task; puts images again that went with the end of another task."""
        for attempts_left in reversed(range(_CREATE_ATTEMPTS)):
            for image in images:
                await put(image)
            try:
                await finished(self._store.create(record, remember))
            except NotFoundError as error:
                if error.reason != "IMAGE_NOT_FOUND" or not attempts_left:
                    raise
            else:
                return

    def _new_header(self, registration: Registration, family: ModelFamily) -> TaskHeader:
        now = self._now()
        expiration = registration.expiration
        return TaskHeader(
            name=TaskName(
                registration.tenant, registration.task_id or f"task-{secrets.token_hex(6)}"
            ),
            uid=secrets.token_hex(8),
            display_name=registration.display_name,
            model=family.alias,
            classes=registration.classes,
            revision=1,
            support_count=len(registration.supports),
            create_time=now,
            update_time=now,
            expire_time=now + expiration if isinstance(expiration, timedelta) else expiration,
            fusion=registration.fusion,
        )

    async def get(self, name: TaskName, call: Call) -> TaskReport:
        """A task as it is kept."""
        async with running(call, self._telemetry):
            record = await self._directory.record(name, call)
            header = record.header
            family = self._catalog.families().get(header.model)
            guidance = None if family is None else self._builder.peek(family, header)
            return TaskReport(
                header,
                summaries(record),
                "" if family is None else family.name,
                0 if guidance is None else guidance.nbytes,
            )

    async def list(self, tenant: str, *, page_size: int, after: str) -> Sequence[TaskHeader]:
        """Headers in the order of task ids, those above ``after``; a short page is the last."""
        return await self._directory.list(tenant, limit=page_size, after=after)

    async def delete(self, name: TaskName, etag: str) -> None:
        """Removes a task; raises NotFoundError if there is none."""
        call = Call()
        async with self._locks.hold(name):
            header = await self._directory.header(name, call, etag=etag)
            try:
                found = await finished(self._store.delete(name, etag or None))
            finally:
                self._directory.forget(name)
                self._builder.forget_task(header)
        if not found:
            raise task_not_found(name)
        self._telemetry.tasks(await self._store.count())

    async def add_supports(
        self,
        name: TaskName,
        etag: str,
        request_id: str,
        supports: AsyncIterator[SupportInput],
        call: Call,
    ) -> TaskReport:
        """Adds supports as they arrive; all of them, or none.

        Images go to the store one by one and are not held in memory; until the
        last step they belong to no task.
        """
        request = RequestId(name.tenant, "AddSupports", request_id)
        body = BodyDigest(str(name), etag)
        async with running(call, self._telemetry):
            # A stream may be long or dead: its id is held for the last step only.
            remembered = await self._requests.recall(request)
            if remembered is not None:
                async for given in supports:
                    await self._intake.count_in(body, given)
                return self._requests.replay(remembered, body.hexdigest())
            async with self._images.of_call(name.tenant) as put:
                record = await self._directory.record(name, call, etag=etag)
                added = await self._receive(record, supports, body, put, call)
                return await self._append(name, etag, added, request, body, call)

    async def _append(
        self,
        name: TaskName,
        etag: str,
        added: Sequence[Support],
        request: RequestId,
        body: BodyDigest,
        call: Call,
    ) -> TaskReport:
        async def edit(current: TaskRecord) -> _Edit:
            self._intake.check_count(len(current.supports) + len(added), current.header.fusion)
            taken = [support.support_id for support in current.supports]
            new = with_ids(added, taken=taken)
            judged = [support.support_id for support in new]
            return _Edit(current.supports + new, upserted=new, judged=judged)

        return await self._change_once(name, etag, request, body.hexdigest(), edit, call)

    async def _receive(
        self,
        record: TaskRecord,
        supports: AsyncIterator[SupportInput],
        body: BodyDigest,
        put: Put,
        call: Call,
    ) -> Sequence[Support]:
        """Checks, computes and stores each support as it comes."""
        added: list[Support] = []
        header = record.header
        nbytes = weight_of(record.supports)
        async for given in supports:
            await self._intake.count_in(body, given)
            self._intake.check_count(len(record.supports) + len(added) + 1, header.fusion)
            try:
                async with self._admission.slot(call, patient=True):
                    support = await self._intake.take(given, header.classes, call)
                    nbytes += weight_of((support,))
                    self._intake.check_weight(nbytes)
                    with self._catalog.lease_of(header) as family:
                        inferred = infers_background(family, (*record.supports, support))
                        try:
                            await self._builder.shot(
                                family, header, support, call, inferred=inferred, image=given.image
                            )
                        except InvalidArgumentError as error:
                            raise error.within("image") from None
                    with call.clock.measure(Stage.STORE):
                        await put(given.image)
            except FewSegError as error:
                raise error.within(f"supports[{len(added)}]") from None
            added.append(support)
        if not added:
            raise InvalidArgumentError(
                "NO_SUPPORTS", "The stream ended without a support.", field="support"
            )
        return added

    async def annotate_support(
        self,
        name: TaskName,
        support_id: str,
        annotation: AnnotationInput,
        *,
        extend: bool,
        etag: str,
        request_id: str,
        call: Call,
    ) -> TaskReport:
        """Replaces the annotation of a known image, or paints more marks over it."""
        request = RequestId(name.tenant, "AnnotateSupport", request_id)
        body = ""
        if request.value:
            body = await self._intake.digest_of_annotation(
                annotation, str(name), support_id, annotation, extend, etag
            )

        async def edit(current: TaskRecord) -> _Edit:
            old = current.support(support_id)
            if old is None:
                raise support_not_found(support_id)
            new = await self._intake.annotate(
                old, annotation, current.header.classes, call, extend=extend
            )
            supports = tuple(new if s is old else s for s in current.supports)
            return _Edit(supports, upserted=(new,), field="annotation")

        async with running(call, self._telemetry):
            return await self._change_once(name, etag, request, body, edit, call)

    async def remove_support(
        self, name: TaskName, support_id: str, *, etag: str, request_id: str, call: Call
    ) -> TaskReport:
        """Removes a support; every class must still be shown by another."""
        request = RequestId(name.tenant, "RemoveSupport", request_id)
        body = BodyDigest(str(name), support_id, etag).hexdigest()

        async def edit(current: TaskRecord) -> _Edit:
            if current.support(support_id) is None:
                raise support_not_found(support_id)
            left = tuple(s for s in current.supports if s.support_id != support_id)
            return _Edit(left, removed=(support_id,), field="support_id")

        async with running(call, self._telemetry):
            return await self._change_once(name, etag, request, body, edit, call)

    async def _change_once(
        self,
        name: TaskName,
        etag: str,
        request: RequestId,
        body: str,
        edit: Callable[[TaskRecord], Awaitable[_Edit]],
        call: Call,
    ) -> TaskReport:
        async with self._requests.once(request) as remembered:
            if remembered is not None:
                return self._requests.replay(remembered, body)
            return await self._change(name, etag, request, body, edit, call)

    async def _change(
        self,
        name: TaskName,
        etag: str,
        request: RequestId,
        body: str,
        edit: Callable[[TaskRecord], Awaitable[_Edit]],
        call: Call,
    ) -> TaskReport:
        async with self._locks.hold(name), self._admission.slot(call):
            before = await self._directory.record(name, call, etag=etag)
            with self._catalog.lease_of(before.header) as family:
                edited = await edit(before)
                self._intake.check_weight(weight_of(edited.supports))
                header = replace(
                    before.header,
                    revision=before.header.revision + 1,
                    support_count=len(edited.supports),
                    update_time=self._now(),
                )
                record = TaskRecord(header, edited.supports)
                shot_set = await self._builder.shots(family, header, record.supports, call)
                if shot_set.missing:
                    raise FailedPreconditionError(
                        *class_without_pixels(shot_set, family), field=edited.field
                    )
                header = replace(header, background=shot_set.background)
                record = TaskRecord(header, edited.supports)

                async def commit(remember: RememberedRequest | None) -> None:
                    change = TaskChange(header, edited.upserted, edited.removed, remember)
                    try:
                        await finished(self._store.apply(change))
                    finally:
                        # Whatever happened, the store knows better now.
                        self._directory.forget(name)

                report = await self._committer.complete(
                    family, record, shot_set, edited.judged, request, body, commit, call
                )
                self._builder.forget(family, before.header)
                return report
