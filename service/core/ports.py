"""What the core asks of the outside: an engine, a store, and an ear for what happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar, runtime_checkable

from numpy.typing import NDArray

from service.core.family import GraphRole, ModelFamily
from service.core.timing import Stage
from service.core.types import SourceImage, Support, TaskHeader, TaskName, TaskRecord

#: Tensors by name. Every tensor has the batch as dimension 0.
Tensors = Mapping[str, NDArray[Any]]
#: What a graph gave, by name.
Outputs = dict[str, NDArray[Any]]

#: Hears what a graph gave.
OnGraph = Callable[[GraphRole, Outputs], None]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a model repository holds.

    Attributes:
        families: The complete families, by name.
        problems: A line for each thing that cannot be served; names the file.
    """

    families: Mapping[str, ModelFamily]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuidanceHandle:
    """Task guidance that an engine keeps close to the network.

    Attributes:
        family: The family that it was made by.
        key: Unique among the engine's handles.
        nbytes: Bytes that the engine holds for it.
    """

    family: str
    key: str
    nbytes: int


class Engine(Protocol):
    """Runs graphs of a model repository."""

    @property
    def name(self) -> str:
        """For people: "embedded" or "triton"."""
        ...

    async def discover(self) -> Discovery:
        """Reads the repository afresh; loads nothing.

        Raises:
            UnavailableError: The repository cannot be reached.
        """
        ...

    async def load(self, family: str) -> None:
        """Loads all graphs of a family that ``discover`` named; a loaded one stays.

        Raises:
            RepositoryError: A graph does not load; none of the family stays loaded.
            UnavailableError: The engine does not answer.
        """
        ...

    async def unload(self, family: str) -> None:
        """Lets a family go, and its guidance handles with it. Unknown names are ignored."""
        ...

    async def run(
        self,
        family: str,
        role: GraphRole,
        inputs: Tensors,
        *,
        guidance: GuidanceHandle | None = None,
        deadline: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Runs one graph or ensemble of a loaded family.

        Args:
            family: Family name.
            role: Which graph.
            inputs: Its input tensors; those of ``guidance`` are added to them.
            guidance: A handle of ``put_guidance`` of the same family.
            deadline: ``time.monotonic()`` after which the answer is worthless.

        Returns:
            All output tensors, by name. They are the caller's: the engine does
            not touch them again.

        Raises:
            UnavailableError: The engine cannot run it now.
            DeadlineExceededError: The deadline passed.
        """
        ...

    async def put_guidance(self, family: str, tensors: Tensors) -> GuidanceHandle:
        """Keeps the guidance tensors of one task (batch dimension 1) for ``run``."""
        ...

    async def drop(self, handle: GuidanceHandle) -> None:
        """Lets guidance go. Dropping twice is harmless; a run in flight keeps what it needs."""
        ...

    async def close(self) -> None:
        """Lets everything go."""
        ...


@runtime_checkable
class HostingEngine(Engine, Protocol):
    """An engine whose threads also do the work right before and right after a graph run.

    Only where the graph runs in this process: a visit to a thread then costs as much as the work.
    """

    async def run_hosting(
        self,
        family: str,
        role: GraphRole,
        prepare: Callable[[], Tensors],
        finish: Callable[[Outputs], Result],
        *,
        guidance: GuidanceHandle | None = None,
        deadline: float | None = None,
        on_graph: OnGraph | None = None,
    ) -> Result:
        """As ``Engine.run``, with inputs made and outputs used in the thread of the run.

        Args:
            family: Family name.
            role: Which graph.
            prepare: Makes the input tensors. What it raises is raised here.
            finish: Gets the output tensors; likewise.
            guidance: See ``Engine.run``.
            deadline: Likewise.
            on_graph: Hears, in that thread and before ``finish``, what each graph of an ensemble
                gave.

        Returns:
            What ``finish`` made.
        """
        ...


@dataclass(frozen=True, slots=True)
class RememberedRequest:
    """A request that was carried out, kept so that it is not carried out twice.

    Attributes:
        tenant, method, request_id: Together unique.
        body_digest: Hexadecimal SHA-256 of the request's domain values.
        answer: The answer, encoded by ``service.core.records``.
        expire_time: UTC; after it the id may be used again.
    """

    tenant: str
    method: str
    request_id: str
    body_digest: str
    answer: bytes
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class TaskChange:
    """A change of one task, applied whole or not at all.

    Attributes:
        header: The task after the change; its revision is one above the present one.
        upserted: Supports to add at the end, or to replace in place by id.
        removed: Ids of supports to remove.
        request: To be remembered in the same transaction.
    """

    header: TaskHeader
    upserted: tuple[Support, ...] = ()
    removed: tuple[str, ...] = ()
    request: RememberedRequest | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep removed."""

    expired: tuple[TaskName, ...] = field(default=())
    images: int = 0
    requests: int = 0


class Store(Protocol):
    """Keeps support sets. A call that returned is a change that is kept.

    Every method may raise ``UnavailableError`` (reason STORE_UNAVAILABLE) and,
    where it writes, ``ResourceExhaustedError`` (reason STORE_FULL, when the
    disk is full); after either nothing of the call's change is kept.
    """

    @property
    def name(self) -> str:
        """For people: "memory" or "sqlite"."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether no other process changes the tasks, so that headers may be cached."""
        ...

    async def open(self) -> None:
        """Prepares the store; raises ``UnavailableError`` when that is not possible."""
        ...

    async def close(self) -> None:
        """Lets the store go. Closing twice is harmless."""
        ...

    async def put_image(self, tenant: str, image: SourceImage) -> datetime:
        """Keeps an image under its digest; one that is there already stays.

        An image that no task uses is removed by ``sweep`` once it is old.

        Returns:
            The moment of the put, for ``withdraw_images``.
        """
        ...

    async def withdraw_images(self, tenant: str, put: Mapping[str, datetime]) -> None:
        """Removes images (moment of the put by digest) that no task uses and nobody put since."""
        ...

    async def get_image(self, tenant: str, digest: str) -> SourceImage:
        """Returns an image.

        Raises:
            NotFoundError: It is not there (reason IMAGE_NOT_FOUND).
        """
        ...

    async def create(self, record: TaskRecord, request: RememberedRequest | None) -> None:
        """Keeps a new task. Its images were put before.

        An expired task of the same name is replaced.

        Raises:
            AlreadyExistsError: The name is taken (TASK_EXISTS) or the request id
                is (REQUEST_ID_REUSED).
            ResourceExhaustedError: The store holds its maximum of tasks (TOO_MANY_TASKS).
            NotFoundError: An image is missing (IMAGE_NOT_FOUND).
        """
        ...

    async def get(self, name: TaskName) -> TaskRecord | None:
        """The task with its supports in order, or None. Expired tasks are returned as well."""
        ...

    async def get_support(self, name: TaskName, support_id: str) -> Support | None:
        """One support of a task, or None if there is no such task or support."""
        ...

    async def get_header(self, name: TaskName) -> TaskHeader | None:
        """The task without its supports, or None."""
        ...

    async def apply(self, change: TaskChange) -> None:
        """Applies a change to the task whose uid and revision are those before it.

        Raises:
            AbortedError: The task has another uid or revision by now (STALE_ETAG).
            NotFoundError: The task is gone (TASK_NOT_FOUND), or an image is missing.
            AlreadyExistsError: The request id is taken (REQUEST_ID_REUSED).
        """
        ...

    async def delete(self, name: TaskName, etag: str | None) -> bool:
        """Removes a task and the images that no task uses any more.

        Returns:
            Whether there was such a task.

        Raises:
            AbortedError: ``etag`` is given and is not the task's (STALE_ETAG).
        """
        ...

    async def list_headers(self, tenant: str, *, after: str, limit: int) -> Sequence[TaskHeader]:
        """Headers of a tenant in the order of their task ids, those above ``after``."""
        ...

    async def count(self) -> int:
        """How many tasks there are, expired ones included."""
        ...

    async def find_request(
        self, tenant: str, method: str, request_id: str
    ) -> RememberedRequest | None:
        """A remembered request, or None."""
        ...

    async def sweep(self, now: datetime) -> Sweep:
        """Removes expired tasks and requests, and old images that no task uses."""
        ...


class Telemetry(Protocol):
    """Hears what happens, for metrics, and is told whom to ask for what changes all the time.

    What it watches lives as long as it does; the last that was told for a name counts.
    """

    def stage(self, stage: Stage, seconds: float) -> None:
        """A stage of a call took so long."""
        ...

    def cache_hit(self, cache: str) -> None:
        """A cache ("guidance", "features") had it."""
        ...

    def cache_miss(self, cache: str) -> None:
        """A cache did not have it."""
        ...

    def cache_evicted(self, cache: str, entries: int) -> None:
        """A cache let entries go to stay within its budget."""
        ...

    def watch_cache_bytes(self, cache: str, nbytes: Callable[[], int]) -> None:
        """What tells, from now on and in any thread, how many bytes a cache holds."""
        ...

    def graph_run(self, role: GraphRole) -> None:
        """A graph was run once."""
        ...

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """What tells, from now on and in any thread, how many requests run or wait."""
        ...

    def tasks(self, count: int) -> None:
        """The store holds so many tasks now."""
        ...


class SilentTelemetry:
    """Hears nothing."""

    def stage(self, stage: Stage, seconds: float) -> None:
        """See ``Telemetry``."""

    def cache_hit(self, cache: str) -> None:
        """See ``Telemetry``."""

    def cache_miss(self, cache: str) -> None:
        """See ``Telemetry``."""

    def cache_evicted(self, cache: str, entries: int) -> None:
        """See ``Telemetry``."""

    def watch_cache_bytes(self, cache: str, nbytes: Callable[[], int]) -> None:
        """See ``Telemetry``."""

    def graph_run(self, role: GraphRole) -> None:
        """See ``Telemetry``."""

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """See ``Telemetry``."""

    def tasks(self, count: int) -> None:
        """See ``Telemetry``."""
