"""From query features and guidance to a decided mask."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.core.calls import Call
from service.core.decision import decide
from service.core.family import GraphRole, ModelFamily
from service.core.fusing import fuse
from service.core.gathering import gathered
from service.core.masks import encode
from service.core.ports import Outputs, Tensors
from service.core.postchain import PostChain
from service.core.task_guidance import TaskGuidance
from service.core.timing import Stage, StageClock
from service.core.types import DecidedMask, EncodedMask, OutputOptions, Size
from service.core.visits import Finish, GraphVisits, OnMaps, Prepare

Result = TypeVar("Result")

#: Shots of a cross-guided task that decode a query at a time; an engine may batch them.
_AT_ONCE: Final = 4


class MaskDecider:
    """Runs ``decode`` and takes its logits to labels at the size asked for.

    Args:
        visits: Run the graph, and upsample, decide, encode after it.
    """

    def __init__(self, visits: GraphVisits) -> None:
        self._visits = visits
        self._chains: dict[str, PostChain] = {}

    def forget(self, family: str) -> None:
        """Lets the composed matrices of a family go."""
        self._chains.pop(family, None)

    async def decided(
        self,
        family: ModelFamily,
        inputs: Tensors,
        ways: int,
        call: Call,
        *,
        original: Size,
        output: Size,
        shown: Collection[int],
    ) -> DecidedMask:
        """Labels of one query.

        Args:
            family: By which networks.
            inputs: Of ``decode``, guidance included.
            ways: Classes of the task.
            call: Gets the stages; its deadline is handed down.
            original: Size of the image.
            output: Size of the labels.
            shown: Ways, from 1, that the shots behind the guidance show.
        """

        def finish(outputs: Outputs, clock: StageClock) -> DecidedMask:
            with clock.measure(Stage.UPSAMPLE):
                return self._decide(family, outputs, ways, original, output, shown=shown)

        return await self._visits.run(
            family, GraphRole.DECODE, Stage.DECODE, call, inputs, finish, deadline=call.deadline
        )

    async def encoded(
        self,
        family: ModelFamily,
        role: GraphRole,
        inputs: Tensors | Prepare,
        ways: int,
        call: Call,
        *,
        guidance: TaskGuidance,
        original: Size,
        output: Size,
        options: OutputOptions,
        on_maps: OnMaps | None = None,
    ) -> tuple[DecidedMask, EncodedMask]:
        """Labels of one query, and their bytes.

        Args:
            family: By which networks.
            role: DECODE, or QUERY_DECODER when feature maps are not kept and shots are merged.
            inputs: Feature maps or image, or what makes them.
            ways: Classes of the task.
            call: Gets the stages; its deadline is handed down.
            guidance: Of the task.
            original: Size of the image.
            output: Size of the mask.
            options: The format, and whether to return probabilities.
            on_maps: See ``GraphVisits.run``.
        """

        def finish(outputs: Outputs, clock: StageClock) -> tuple[DecidedMask, EncodedMask]:
            with clock.measure(Stage.UPSAMPLE):
                mask = self._decide(family, outputs, ways, original, output, options.probabilities)
            with clock.measure(Stage.ENCODE):
                return mask, encode(mask, ways, options.format)

        if guidance.weights is not None:
            return await self._fused(family, inputs, guidance, guidance.weights, finish, call)
        return await self._visits.run(
            family,
            role,
            Stage.DECODE,
            call,
            inputs,
            finish,
            guidance=guidance.handles[0],
            deadline=call.deadline,
            on_maps=on_maps,
        )

    async def _fused(
        self,
        family: ModelFamily,
        inputs: Tensors | Prepare,
        guidance: TaskGuidance,
        weights: NDArray[np.float32],
        finish: Finish[Result],
        call: Call,
    ) -> Result:
        """Decodes under each shot of a cross-guided task, and finishes what they say together."""
        # Stages of runs at the same time would add up to more than the time that passed.
        inner = Call(deadline=call.deadline)
        with call.clock.measure(Stage.DECODE):
            answers = await gathered(
                [
                    partial(
                        self._visits.outputs,
                        family,
                        GraphRole.DECODE,
                        Stage.DECODE,
                        inner,
                        inputs,
                        guidance=handle,
                        deadline=call.deadline,
                    )
                    for handle in guidance.handles
                ],
                _AT_ONCE,
            )

        def fused(outputs: Outputs, clock: StageClock) -> Result:
            # One query, one row of the batch.
            logits = [answer["logits"][0] for answer in answers]
            together = fuse(logits, weights, family, weights.shape[1])
            return finish({"logits": together[None]}, clock)

        return await self._visits.finish({}, fused, call)

    def _decide(
        self,
        family: ModelFamily,
        outputs: Outputs,
        ways: int,
        original: Size,
        output: Size,
        probabilities: bool = False,
        shown: Collection[int] | None = None,
    ) -> DecidedMask:
        chain = self._chains.get(family.name)
        if chain is None:
            chain = self._chains[family.name] = PostChain(family.post_chain)
        # One query, one row of the batch.
        logits = outputs["logits"][0]
        grid = Size(logits.shape[-2], logits.shape[-1])
        axes = chain.axes(
            grid, family.network_size(original), original, output, family.extent(original)
        )
        return decide(
            logits, axes, family=family, ways=ways, probabilities=probabilities, shown=shown
        )
