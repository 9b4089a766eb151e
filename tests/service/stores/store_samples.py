"""Values that the store tests keep, and a clock that they turn."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from service.core.errors import NotFoundError
from service.core.ports import RememberedRequest, Store, TaskChange
from service.core.types import (
    Annotation,
    Box,
    Mark,
    ShotFusion,
    Size,
    SourceImage,
    Support,
    TaskHeader,
    TaskName,
    TaskRecord,
)

START = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


class TurnedClock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        return self.moment

    def turn(self, **units: float) -> datetime:
        self.moment += timedelta(**units)
        return self.moment


def image(number: int, nbytes: int = 32) -> SourceImage:
    data = hashlib.sha256(str(number).encode()).digest() * (nbytes // 32)
    return SourceImage(
        data=data,
        size=Size(10 + number, 20),
        raw=number % 2 == 1,
        digest=hashlib.sha256(data).hexdigest(),
    )


def support(support_id: str, number: int = 0, version: int = 1) -> Support:
    """A support on image ``number`` whose annotation tells its version."""
    picture = image(number)
    mark = Mark(Box(0.0, 0.0, float(version), 1.5), "cat")
    return Support(
        support_id=support_id,
        image_digest=picture.digest,
        image_size=picture.size,
        annotation=Annotation((mark,), exhaustive=False, shot_classes=("cat",)),
        annotation_digest=f"{version:064x}",
    )


def record(
    task: str,
    *supports: Support,
    tenant: str = "default",
    uid: str = "00000000000000aa",
    expire_time: datetime | None = None,
) -> TaskRecord:
    header = TaskHeader(
        name=TaskName(tenant, task),
        uid=uid,
        display_name="Überprüfung",
        model="compact",
        classes=("cat", "dog"),
        revision=1,
        support_count=len(supports),
        create_time=START,
        update_time=START,
        expire_time=expire_time,
        fusion=ShotFusion.CROSS_GUIDED,
    )
    return TaskRecord(header, supports)


def change(
    header: TaskHeader,
    *upserted: Support,
    removed: tuple[str, ...] = (),
    support_count: int | None = None,
    request: RememberedRequest | None = None,
) -> TaskChange:
    """The next revision of the task that ``header`` describes."""
    following = replace(
        header,
        revision=header.revision + 1,
        support_count=header.support_count if support_count is None else support_count,
        update_time=header.update_time + timedelta(seconds=1),
    )
    return TaskChange(following, upserted, removed, request)


def request(
    request_id: str = "r1",
    *,
    tenant: str = "default",
    method: str = "RegisterTask",
    body: int = 0,
    expire_time: datetime = START + timedelta(days=1),
) -> RememberedRequest:
    return RememberedRequest(
        tenant, method, request_id, f"{body:064x}", f"answer {body}".encode(), expire_time
    )


async def register(
    store: Store, kept: TaskRecord, remembered: RememberedRequest | None = None
) -> None:
    """Puts the images that ``support`` names and creates the task."""
    wanted = {s.image_digest for s in kept.supports}
    for number in range(64):
        if image(number).digest in wanted:
            await store.put_image(kept.header.name.tenant, image(number))
    await store.create(kept, remembered)


async def holds_image(store: Store, number: int, tenant: str = "default") -> bool:
    try:
        return await store.get_image(tenant, image(number).digest) == image(number)
    except NotFoundError:
        return False
