"""The last steps of every change of a task: merge, judge, commit, keep."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from service.core.calls import Call
from service.core.directory import TaskDirectory
from service.core.family import ModelFamily
from service.core.guidance import GuidanceBuilder
from service.core.leave_one_out import LeaveOneOut
from service.core.ports import RememberedRequest
from service.core.requests import RequestId, RequestMemory
from service.core.shots import ShotSet
from service.core.timing import Stage
from service.core.types import SupportSummary, TaskRecord, TaskReport


class TaskCommitter:
    """Completes registrations and changes, whose shots are computed and whose classes are shown.

    Args:
        directory: Learns of the new header.
        builder: Merges guidance, and keeps it for the queries to come.
        judge: Leave-one-out.
        requests: Remembers request ids.
        leave_one_out_limit: The most supports judged in one answer.
    """

    def __init__(
        self,
        *,
        directory: TaskDirectory,
        builder: GuidanceBuilder,
        judge: LeaveOneOut,
        requests: RequestMemory,
        leave_one_out_limit: int,
    ) -> None:
        self._directory = directory
        self._builder = builder
        self._judge = judge
        self._requests = requests
        self._leave_one_out_limit = leave_one_out_limit

    async def complete(
        self,
        family: ModelFamily,
        record: TaskRecord,
        shot_set: ShotSet,
        judged: Collection[str],
        request: RequestId,
        body: str,
        commit: Callable[[RememberedRequest | None], Awaitable[None]],
        call: Call,
    ) -> TaskReport:
        """Merges, judges, commits, and keeps the guidance.

        Args:
            family: By which networks.
            record: The task after the change.
            shot_set: The guidance of its supports, in their order.
            judged: Ids of the supports whose agreement is asked for.
            request: Its id, to be remembered.
            body: Digest of what it asked for.
            commit: Writes the change, and the remembered request with it.
            call: Gets the stages.
        """
        distilled = await self._builder.distil(family, record.header, shot_set, call)
        limited = list(judged)[: self._leave_one_out_limit]
        report = TaskReport(
            header=record.header,
            supports=tuple(map(SupportSummary.of, record.supports, shot_set.without_pixels)),
            family=family.name,
            guidance_bytes=distilled.nbytes,
            leave_one_out=await self._judge.judge(
                family, record.header, shot_set, distilled, limited, call
            ),
        )
        with call.clock.measure(Stage.STORE):
            await commit(self._requests.to_remember(request, body, report))
        self._directory.note(record)
        await self._builder.keep(family, record.header, distilled)
        return report


def summaries(record: TaskRecord) -> tuple[SupportSummary, ...]:
    """The supports as an answer shows them."""
    return tuple(SupportSummary.of(support) for support in record.supports)


def class_without_pixels(shot_set: ShotSet, family: ModelFamily) -> tuple[str, str]:
    """Reason and message of the error that a class is shown nowhere."""
    names = ", ".join(f"'{name}'" for name in shot_set.missing)
    size = f" at the network's {family.input_size}" if family.input_size else ""
    return (
        "CLASS_WITHOUT_PIXELS",
        f"No support of the task shows a pixel of {names}{size}; annotate one.",
    )
