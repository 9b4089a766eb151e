"""From query features and guidance to a decided mask."""

from __future__ import annotations

import time
from typing import Any

from numpy.typing import NDArray

from service.core.calls import Call
from service.core.decision import decide
from service.core.family import GraphRole, ModelFamily
from service.core.masks import encode
from service.core.ports import Engine, GuidanceHandle, Tensors
from service.core.postchain import PostChain
from service.core.timing import Stage
from service.core.types import DecidedMask, EncodedMask, MaskFormat, Size
from service.core.workers import CodecWorkers


class MaskDecider:
    """Runs ``decode`` and takes its logits to labels at the size asked for.

    Args:
        engine: Runs the graph.
        workers: Upsample, decide, encode.
    """

    def __init__(self, engine: Engine, workers: CodecWorkers) -> None:
        self._engine = engine
        self._workers = workers
        self._chains: dict[str, PostChain] = {}

    def forget(self, family: str) -> None:
        """Lets the composed matrices of a family go."""
        self._chains.pop(family, None)

    async def logits(
        self,
        family: ModelFamily,
        role: GraphRole,
        inputs: Tensors,
        call: Call,
        *,
        handle: GuidanceHandle | None = None,
    ) -> NDArray[Any]:
        """The logits [P, S, h, w] of one query.

        Args:
            family: By which networks.
            role: DECODE, or QUERY_DECODER when feature maps are not kept.
            inputs: Feature maps or image; the guidance too, if there is no handle.
            call: Its deadline is handed down.
            handle: Of the task's guidance.
        """
        with call.clock.measure(Stage.DECODE):
            outputs = await self._engine.run(
                family.name, role, inputs, guidance=handle, deadline=call.deadline
            )
        logits: NDArray[Any] = outputs["logits"][0]
        return logits

    async def decided(
        self,
        family: ModelFamily,
        logits: NDArray[Any],
        ways: int,
        *,
        original: Size,
        output: Size,
    ) -> DecidedMask:
        """Labels at ``output``, for an image of size ``original``."""
        return await self._workers.run(self._decide, family, logits, ways, original, output, False)

    async def encoded(
        self,
        family: ModelFamily,
        logits: NDArray[Any],
        ways: int,
        call: Call,
        *,
        original: Size,
        output: Size,
        format_: MaskFormat,
        probabilities: bool,
    ) -> tuple[DecidedMask, EncodedMask]:
        """Labels at ``output`` and their bytes, made in one visit to a worker thread."""

        def finish() -> tuple[DecidedMask, EncodedMask, float, float]:
            started = time.perf_counter()
            mask = self._decide(family, logits, ways, original, output, probabilities)
            decided = time.perf_counter()
            content = encode(mask, ways, format_)
            return mask, content, decided - started, time.perf_counter() - decided

        mask, content, upsampling, encoding = await self._workers.run(finish)
        call.clock.add(Stage.UPSAMPLE, upsampling)
        call.clock.add(Stage.ENCODE, encoding)
        return mask, content

    def _decide(
        self,
        family: ModelFamily,
        logits: NDArray[Any],
        ways: int,
        original: Size,
        output: Size,
        probabilities: bool,
    ) -> DecidedMask:
        chain = self._chains.get(family.name)
        if chain is None:
            chain = self._chains[family.name] = PostChain(family.post_chain)
        grid = Size(logits.shape[-2], logits.shape[-1])
        axes = chain.axes(grid, family.network_size(original), original, output)
        return decide(logits, axes, family=family, ways=ways, probabilities=probabilities)
