"""Images on their way into a task: put into the store before the task that uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from service.core.calls import finished
from service.core.errors import FewSegError
from service.core.ports import Store
from service.core.types import SourceImage

Put = Callable[[SourceImage], Awaitable[None]]


class PutImages:
    """Puts the images of calls, and lets those go that were put in vain.

    Calls that put the same image at the same time count on it together: it stays until the last of
    them has failed.

    Args:
        store: Keeps images.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._calls: Counter[tuple[str, str]] = Counter()
        self._moments: dict[tuple[str, str], datetime] = {}

    @asynccontextmanager
    async def of_call(self, tenant: str) -> AsyncIterator[Put]:
        """Gives a call the way to put images; if the call fails, they go again.

        Args:
            tenant: Whose images.
        """
        digests: set[str] = set()

        async def put(image: SourceImage) -> None:
            if image.digest not in digests:
                digests.add(image.digest)
                self._calls[tenant, image.digest] += 1
            self._moments[tenant, image.digest] = await self._store.put_image(tenant, image)

        try:
            yield put
        except BaseException:
            await self._withdraw(tenant, self._let_go(tenant, digests))
            raise
        self._let_go(tenant, digests)

    def _let_go(self, tenant: str, digests: set[str]) -> dict[str, datetime]:
        """Counts a call out; returns when the images were put that no other call counts on."""
        last = {}
        for digest in digests:
            self._calls[tenant, digest] -= 1
            if not self._calls[tenant, digest]:
                del self._calls[tenant, digest]
                moment = self._moments.pop((tenant, digest), None)
                if moment is not None:
                    last[digest] = moment
        return last

    async def _withdraw(self, tenant: str, put: dict[str, datetime]) -> None:
        if put:
            with suppress(FewSegError):  # the sweep finds what stays
                await finished(self._store.withdraw_images(tenant, put))
