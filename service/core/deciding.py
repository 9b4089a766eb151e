"""From query features and guidance to a decided mask."""

from __future__ import annotations

from service.core.calls import Call
from service.core.decision import decide
from service.core.family import GraphRole, ModelFamily
from service.core.masks import encode
from service.core.ports import GuidanceHandle, Outputs, Tensors
from service.core.postchain import PostChain
from service.core.timing import Stage, StageClock
from service.core.types import DecidedMask, EncodedMask, OutputOptions, Size
from service.core.visits import GraphVisits, Prepare


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
    ) -> DecidedMask:
        """Labels of one query.

        Args:
            family: By which networks.
            inputs: Of ``decode``, guidance included.
            ways: Classes of the task.
            call: Gets the stages; its deadline is handed down.
            original: Size of the image.
            output: Size of the labels.
        """

        def finish(outputs: Outputs, clock: StageClock) -> DecidedMask:
            with clock.measure(Stage.UPSAMPLE):
                return self._decide(family, outputs, ways, original, output, False)

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
        handle: GuidanceHandle,
        original: Size,
        output: Size,
        options: OutputOptions,
    ) -> tuple[DecidedMask, EncodedMask]:
        """Labels of one query, and their bytes.

        Args:
            family: By which networks.
            role: DECODE, or QUERY_DECODER when feature maps are not kept.
            inputs: Feature maps or image, or what makes them.
            ways: Classes of the task.
            call: Gets the stages; its deadline is handed down.
            handle: Of the task's guidance.
            original: Size of the image.
            output: Size of the mask.
            options: The format, and whether to return probabilities.
        """

        def finish(outputs: Outputs, clock: StageClock) -> tuple[DecidedMask, EncodedMask]:
            with clock.measure(Stage.UPSAMPLE):
                mask = self._decide(family, outputs, ways, original, output, options.probabilities)
            with clock.measure(Stage.ENCODE):
                return mask, encode(mask, ways, options.format)

        return await self._visits.run(
            family,
            role,
            Stage.DECODE,
            call,
            inputs,
            finish,
            guidance=handle,
            deadline=call.deadline,
        )

    def _decide(
        self,
        family: ModelFamily,
        outputs: Outputs,
        ways: int,
        original: Size,
        output: Size,
        probabilities: bool,
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
        return decide(logits, axes, family=family, ways=ways, probabilities=probabilities)
