"""A plain LitServe endpoint. Run in LitServe's environment, with a port as its argument."""

# LitServe reads the annotation of ``decode_request`` at run time: it must not become a string.
import sys
from typing import Any

import litserve
from fastapi import Request, Response

from loadtests.peers.endpoint import ENGINE_SECONDS, Segmenter


class Segmentation(litserve.LitAPI):  # type: ignore[misc]
    """An uploaded photograph to its mask."""

    def setup(self, device: str) -> None:
        """Loads the network."""
        self._segmenter = Segmenter()

    def decode_request(self, request: Request) -> bytes:
        """Takes the file out of the form, which is what arrives here."""
        form: Any = request
        content: bytes = form["image"].file.read()
        return content

    def predict(self, jpeg: bytes) -> tuple[bytes, float]:
        """Segments."""
        return self._segmenter.segment(jpeg)

    def encode_response(self, found: tuple[bytes, float]) -> Any:
        """Answers with the mask."""
        png, seconds = found
        return Response(png, media_type="image/png", headers={ENGINE_SECONDS: repr(seconds)})


if __name__ == "__main__":
    server = litserve.LitServer(Segmentation(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
