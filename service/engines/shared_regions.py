# SPDX-License-Identifier: Apache-2.0
"""Task guidance on its way to Triton: in shared memory where it is large, else with each request.

Guidance of some methods is tens of megabytes, and a task has the same for every query: where
gateway and Triton share a machine it is written once into a region of system shared memory, which
requests refer to.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype

from service.core.errors import FewSegError
from service.core.ports import GuidanceHandle, Tensors
from service.engines.feeds import guidance_dropped, nbytes, read_only, repeated
from service.engines.triton_endpoint import Endpoint
from service.engines.triton_errors import TritonError, Trouble

_log = logging.getLogger(__name__)

_ALIGNMENT: Final = 64
_REGION: Final = re.compile(r"fewseg-[0-9]+-[0-9a-f]{12}")
#: Where Linux keeps system shared memory.
_FOLDER: Final = "/dev/shm"
#: Time between two attempts to have a region unmapped that a run still reads.
_UNMAP_SECONDS: Final = 0.5
#: From this size on copying is not for the event loop.
_LARGE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in a region."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(eq=False, slots=True)
class Guidance:
    """Guidance behind a handle: either arrays, or a region.

    Attributes:
        family: Which made it.
        nbytes: What it takes.
        tensors: Where it is not shared.
        memory, places: Where it is.
        users: Runs that use it.
        dropped: Whether it goes with its last user.
    """

    family: str
    nbytes: int
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    memory: SharedMemory | None = None
    places: Mapping[str, _Place] = field(default_factory=dict)
    users: int = 0
    dropped: bool = False

    def shapes(self, batch: int) -> dict[str, NDArray[Any]]:
        """Arrays of the right names, types and shapes for a batch; their values say nothing."""
        if self.memory is None:
            return repeated(self.tensors, batch)
        return {
            name: np.broadcast_to(np.zeros((), place.dtype), (batch, *place.shape[1:]))
            for name, place in self.places.items()
        }

    async def inputs(self, endpoint: Endpoint, batch: int) -> list[Any]:
        """The guidance as inputs of a request: references where the server shares the memory.

        Args:
            endpoint: Where the request goes.
            batch: Queries in it; only a single one can refer to a region.

        Raises:
            TritonError: The endpoint does not answer.
        """
        memory = self.memory
        if memory is None or batch != 1 or not await _registered(memory, endpoint):
            return [as_input(*item) for item in repeated(self._arrays(), batch).items()]
        references = []
        for name, place in self.places.items():
            reference = InferInput(name, list(place.shape), np_to_triton_dtype(place.dtype))
            reference.set_shared_memory(memory.name, place.nbytes, place.offset)
            references.append(reference)
        return references

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors; copies where they are in a region, which nobody may refer to for long."""
        if self.memory is None:
            return dict(self.tensors)
        content = _content(self.memory)
        return {
            name: np.frombuffer(
                bytes(content[place.offset : place.offset + place.nbytes]), place.dtype
            ).reshape(place.shape)
            for name, place in self.places.items()
        }


class GuidanceShelf:
    """Keeps guidance for the runs that refer to it.

    Args:
        endpoints: Where regions may have been registered.
        threshold: Bytes from which on guidance is shared; None for never.
    """

    def __init__(self, endpoints: Sequence[Endpoint], threshold: int | None) -> None:
        self._endpoints = tuple(endpoints)
        self._threshold = threshold
        self._kept: dict[str, Guidance] = {}
        self._numbers = itertools.count(1)
        #: Regions that are gone here, and that servers still map.
        self._lingering: set[tuple[Endpoint, str]] = set()
        self._unmapping: asyncio.Task[None] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes behind all handles."""
        return sum(kept.nbytes for kept in self._kept.values())

    async def put(self, family: str, tensors: Tensors) -> GuidanceHandle:
        """Keeps checked guidance; read-only arrays that are not shared are kept without a copy."""
        size = nbytes(tensors)
        kept: Guidance | None = None
        if self._threshold is not None and size >= self._threshold:
            if size < _LARGE:
                kept = _share(family, tensors)
            else:
                kept = await asyncio.to_thread(_share, family, tensors)
        if kept is None:
            arrays = {name: read_only(values) for name, values in tensors.items()}
            kept = Guidance(family, size, tensors=arrays)
        key = f"{family}/{next(self._numbers)}"
        self._kept[key] = kept
        return GuidanceHandle(family, key, kept.nbytes)

    @asynccontextmanager
    async def using(self, handle: GuidanceHandle) -> AsyncIterator[Guidance]:
        """Keeps guidance for the with-block, even where it is dropped meanwhile.

        Raises:
            UnavailableError: It was dropped before (GUIDANCE_DROPPED).
        """
        kept = self._kept.get(handle.key)
        if kept is None:
            raise guidance_dropped()
        kept.users += 1
        try:
            yield kept
        finally:
            kept.users -= 1
            await self._release(kept)

    async def drop(self, handle: GuidanceHandle) -> None:
        """Lets guidance go once nobody uses it; again is harmless."""
        kept = self._kept.pop(handle.key, None)
        if kept is not None:
            kept.dropped = True
            await self._release(kept)

    async def drop_family(self, family: str) -> None:
        """Lets all guidance of a family go."""
        for key in [key for key, kept in self._kept.items() if kept.family == family]:
            await self.drop(GuidanceHandle(family, key, 0))

    async def sweep(self) -> None:
        """Lets servers unmap the regions of gateways that ended without a word.

        Their names are gone from this machine; the memory goes when no server maps it.
        """
        for endpoint in self._endpoints:
            if not endpoint.shares or endpoint.left_out():
                continue
            with suppress(TritonError):
                for name in await endpoint.registered():
                    if _REGION.fullmatch(name) and not _exists(name):
                        await endpoint.unregister(name)

    async def close(self) -> None:
        """Lets everything go, used or not."""
        for kept in list(self._kept.values()):
            kept.dropped, kept.users = True, 0
            await self._release(kept)
        self._kept.clear()
        if self._unmapping is not None:
            self._unmapping.cancel()
            await asyncio.wait({self._unmapping})

    async def _release(self, kept: Guidance) -> None:
        """Takes dropped guidance away when its last user has gone."""
        memory = kept.memory
        if memory is None or not kept.dropped or kept.users > 0:
            return
        kept.memory = None
        name = memory.name
        memory.close()
        memory.unlink()
        self._lingering |= {(one, name) for one in self._endpoints if name in one.regions}
        await self._unmap()
        if self._lingering and (self._unmapping is None or self._unmapping.done()):
            self._unmapping = asyncio.create_task(self._unmap_later())

    async def _unmap_later(self) -> None:
        while self._lingering:
            await asyncio.sleep(_UNMAP_SECONDS)
            await self._unmap()

    async def _unmap(self) -> None:
        """Lets servers unmap what is gone; a region that a run still reads stays for later."""
        for endpoint, region in tuple(self._lingering):
            self._lingering.discard((endpoint, region))
            try:
                await endpoint.unregister(region)
            except TritonError as error:
                if error.trouble is Trouble.FAILED:
                    self._lingering.add((endpoint, region))
            except FewSegError:
                pass  # the engine is closed, and the server's share goes with the server


def as_input(name: str, values: NDArray[Any]) -> Any:
    """An array as input of a request."""
    tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values)
    return tensor


async def _registered(memory: SharedMemory, endpoint: Endpoint) -> bool:
    """Whether the endpoint maps the region, which it is asked to do before its first use."""
    if not endpoint.shares:
        return False
    if memory.name in endpoint.regions:
        return True
    try:
        await endpoint.register(memory.name, memory.size)
    except TritonError as error:
        if error.trouble is not Trouble.FAILED:
            raise
        _log.warning(
            "Triton at %s does not see this machine's shared memory; guidance goes with requests",
            endpoint.address,
        )
        endpoint.shares = False
        return False
    return True


def _share(family: str, tensors: Tensors) -> Guidance | None:
    """Writes guidance into a new region; None where there is no room for one."""
    places: dict[str, _Place] = {}
    end = 0
    for name, values in tensors.items():
        places[name] = _Place(values.dtype, values.shape, end, values.nbytes)
        end += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory = _allocate(end)
    if memory is None:
        return None
    for name, values in tensors.items():
        place = places[name]
        target = np.frombuffer(_content(memory), place.dtype, values.size, place.offset)
        target.reshape(place.shape)[...] = values
        # The region cannot be closed while an array refers to it.
        del target
    return Guidance(family, nbytes(tensors), memory=memory, places=places)


def _allocate(size: int) -> SharedMemory | None:
    """A region of that size whose pages are there: writing to one that is not kills the process."""
    # Python's resource tracker removes the region even when this process is killed.
    memory: SharedMemory | None = None
    try:
        memory = SharedMemory(
            f"fewseg-{os.getpid()}-{uuid.uuid4().hex[:12]}", create=True, size=size
        )
        descriptor = os.open(f"{_FOLDER}/{memory.name}", os.O_RDWR)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        _log.warning("no shared memory for guidance of %d bytes: %s", size, error.strerror)
        if memory is not None:
            memory.close()
            memory.unlink()
        return None
    return memory


def _exists(region: str) -> bool:
    return os.path.exists(f"{_FOLDER}/{region}")


def _content(memory: SharedMemory) -> memoryview:
    if memory.buf is None:
        raise ValueError("the region is closed")
    return memory.buf
