"""A plain MLServer runtime; MLServer loads the class by its name."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from loadtests.peers.endpoint import Segmenter


class Segmentation(MLModel):  # type: ignore[misc]
    """A photograph (BYTES) to its mask (BYTES) and the engine's seconds (FP64)."""

    async def load(self) -> bool:
        """Loads the network."""
        self._segmenter = Segmenter()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Segments."""
        png, seconds = self._segmenter.segment(payload.inputs[0].data.root[0])
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                ResponseOutput(name="mask", shape=[1], datatype="BYTES", data=[png]),
                ResponseOutput(name="seconds", shape=[1], datatype="FP64", data=[seconds]),
            ],
        )
