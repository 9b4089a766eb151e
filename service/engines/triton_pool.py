# SPDX-License-Identifier: Apache-2.0
"""Several Tritons that hold the same repository: which one runs what, and what they have lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence

from service.core.errors import FewSegError
from service.core.family import ModelFamily
from service.engines.triton_discovery import load_family
from service.engines.triton_endpoint import Endpoint
from service.engines.triton_errors import TritonError, model_missing, unreachable
from service.engines.triton_options import TritonOptions

_log = logging.getLogger(__name__)

#: Failures in a row of a model that answers nobody, after which it is loaded anew.
_FAILURES_TO_RELOAD = 2
_LEAST_RETRY_SECONDS = 0.05


class Pool:
    """Chooses addresses, leaves out those that fail, and gives back models to those that lost them.

    Args:
        endpoints: One for each address.
        options: Bounds.
    """

    def __init__(self, endpoints: Sequence[Endpoint], options: TritonOptions) -> None:
        self.endpoints = tuple(endpoints)
        self._options = options
        self._repairs: dict[tuple[Endpoint, str], asyncio.Task[None]] = {}
        #: Until when a family is not to be asked for at an address that could not load it.
        self._without: dict[tuple[Endpoint, str], float] = {}
        self._failures: dict[tuple[Endpoint, str], int] = {}
        self._reloaded: dict[tuple[Endpoint, str], float] = {}
        self._turn = 0

    def choose(self, model: str, family: str, tried: Collection[Endpoint] = ()) -> Endpoint:
        """The address with the fewest inferences in flight; equal ones take turns.

        Args:
            model: What is to run, for the error.
            family: Its family.
            tried: Addresses to leave out.

        Raises:
            UnavailableError: None can be asked now (ENGINE_UNREACHABLE), or none has
                the family (MODEL_NOT_LOADED).
        """
        there = [one for one in self.endpoints if one not in tried and not one.left_out()]
        able = [one for one in there if not self._lacks(one, family)]
        if able:
            self._turn += 1
            turned = able[self._turn % len(able) :] + able[: self._turn % len(able)]
            return min(turned, key=lambda one: one.in_flight)
        if there:
            wait = min(self._lacks(one, family) for one in there)
            raise model_missing(model, max(wait, _LEAST_RETRY_SECONDS))
        wait = min((one.left_out() for one in self.endpoints), default=0.0)
        raise unreachable(max(wait, _LEAST_RETRY_SECONDS))

    def has_other(self, family: str, tried: Collection[Endpoint]) -> bool:
        """Whether there is an address left to try."""
        return any(
            one not in tried and not one.left_out() and not self._lacks(one, family)
            for one in self.endpoints
        )

    def answered(self, endpoint: Endpoint, model: str) -> None:
        """A model answered."""
        endpoint.answered()
        self._failures.pop((endpoint, model), None)

    def failed(self, endpoint: Endpoint, family: ModelFamily, model: str) -> None:
        """A model failed where the server itself answers.

        Triton goes on to call a model ready whose process has died; only loading it anew helps.
        """
        failures = self._failures.get((endpoint, model), 0) + 1
        self._failures[endpoint, model] = failures
        key = (endpoint, family.name)
        since = time.monotonic() - self._reloaded.get(key, float("-inf"))
        if (
            self._options.model_control
            and failures >= _FAILURES_TO_RELOAD
            and since >= self._options.reload_seconds
        ):
            _log.warning("%s fails at %s: loading it anew", model, endpoint.address)
            self._reloaded[key] = time.monotonic()
            self._failures.pop((endpoint, model), None)
            self.repair(endpoint, family, anew=True)

    def repair(
        self, endpoint: Endpoint, family: ModelFamily, *, anew: bool = False
    ) -> asyncio.Task[None]:
        """Begins to load a family that an address has lost; joins a repair that runs."""
        key = (endpoint, family.name)
        task = self._repairs.get(key)
        if task is None:
            task = asyncio.create_task(self._repair(endpoint, family, anew))
            self._repairs[key] = task
            task.add_done_callback(lambda _: self._repairs.pop(key, None))
        return task

    async def repaired(self, endpoint: Endpoint, family: ModelFamily, seconds: float) -> bool:
        """Waits for a repair, at most so long; returns whether the family is there."""
        task = self.repair(endpoint, family)
        await asyncio.wait({task}, timeout=seconds)
        return task.done() and not self._lacks(endpoint, family.name) and not endpoint.left_out()

    async def forget(self, family: str) -> None:
        """Ends the repairs of a family that is not wanted any more."""
        ending = [task for (_, name), task in self._repairs.items() if name == family]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def close(self) -> None:
        """Ends repairs and connections."""
        for task in list(self._repairs.values()):
            task.cancel()
        await asyncio.gather(*self._repairs.values(), return_exceptions=True)
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))

    async def _repair(self, endpoint: Endpoint, family: ModelFamily, anew: bool) -> None:
        control = self._options.model_control
        try:
            await load_family(endpoint, family, model_control=control, anew=anew)
        except TritonError as error:
            _log.warning("%s: %s", endpoint.address, error.message)
            endpoint.failed()
        except FewSegError as error:
            _log.warning("%s: %s", endpoint.address, error.message)
            until = time.monotonic() + self._options.max_backoff_seconds
            self._without[endpoint, family.name] = until
        else:
            self._without.pop((endpoint, family.name), None)
            _log.info("%s has %s again", endpoint.address, family.name)

    def _lacks(self, endpoint: Endpoint, family: str) -> float:
        """Seconds for which an address is thought not to have a family."""
        return max(0.0, self._without.get((endpoint, family), 0.0) - time.monotonic())
