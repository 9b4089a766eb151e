"""The floor: what no service can go below, written straight down.

Nothing here comes from ``service/``: the same arithmetic once more, with Pillow and numpy, in one
thread and without a queue, a copy or a check that the answer does not need. Beside it stands an
echo server in a process of its own, for what the transport of the same payloads takes.
"""

from __future__ import annotations

import io
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

#: Of the default model: photographs are shrunk to this, and planes drawn at it.
NETWORK_SIDE = 320
_PIECE = 96
_PALETTE = bytes([0, 0, 0, 128, 0, 0])

_Floats = NDArray[np.float32]
#: Feature maps of one image by the names that the graphs give them.
Maps = dict[str, _Floats]
_Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a mask says.

    Attributes:
        png: Palette PNG, 0 background, 1 foreground.
        area: Pixels of the class.
        box: (x_min, y_min, x_max, y_max), or None.
        score: Mean probability over the class.
    """

    png: bytes
    area: int
    box: _Box | None
    score: float


def network_image(jpeg: bytes) -> NDArray[np.uint8]:
    """Decodes a photograph and shrinks it: uint8 [1, 320, 320, 3]."""
    image: Image.Image = Image.open(io.BytesIO(jpeg))
    if image.mode != "RGB":
        image = image.convert("RGB")
    shrunk = image.resize((NETWORK_SIDE, NETWORK_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(shrunk)[None]


@lru_cache(maxsize=64)
def _axis(grid: int, output: int) -> list[tuple[slice, slice, _Floats]]:
    """Bilinear from the grid to the network's side, and from there to the output.

    In pieces of some rows, each without the columns in which it is zero: a seventh of the work.
    """
    twice = _bilinear(NETWORK_SIDE, output) @ _bilinear(grid, NETWORK_SIDE)
    pieces = []
    for top in range(0, output, _PIECE):
        rows = slice(top, top + _PIECE)
        used = np.flatnonzero(twice[rows].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        pieces.append((rows, columns, np.ascontiguousarray(twice[rows, columns], np.float32)))
    return pieces


def _upsampled(margin: _Floats, height: int, width: int) -> _Floats:
    tall = np.empty((height, margin.shape[1]), np.float32)
    for rows, columns, matrix in _axis(margin.shape[0], height):
        np.matmul(matrix, margin[columns], out=tall[rows])
    full = np.empty((height, width), np.float32)
    for rows, columns, matrix in _axis(margin.shape[1], width):
        np.matmul(tall[:, columns], matrix.T, out=full[:, rows])
    return full


def _bilinear(length: int, target: int) -> NDArray[np.float64]:
    matrix = np.zeros((target, length))
    for row in range(target):
        source = max(0.0, (row + 0.5) * length / target - 0.5)
        low = min(int(source), length - 1)
        matrix[row, low] += 1.0 - (source - low)
        matrix[row, min(low + 1, length - 1)] += source - low
    return matrix


def finding(logits: _Floats, height: int, width: int) -> Finding:
    """Upsampling, decision, statistics and encoding of one class.

    Args:
        logits: float32 [2, h, w], background and class.
        height: Of the photograph.
        width: Likewise.
    """
    margin = logits[1] - logits[0]
    upsampled = _upsampled(margin, height, width)
    above = upsampled > 0
    area = int(np.count_nonzero(above))
    box, score = None, 0.0
    if area:
        held = np.flatnonzero(above.any(axis=1))
        top, bottom = int(held[0]), int(held[-1]) + 1
        spans = np.flatnonzero(above[top:bottom].any(axis=0))
        box = (int(spans[0]), top, int(spans[-1]) + 1, bottom)
        # Picking the pixels out first costs more than their background's exponentials.
        probability = np.reciprocal(1.0 + np.exp(-upsampled)).ravel()
        score = float(np.dot(probability, above.ravel().astype(np.float32))) / area
    return Finding(_png(above), area, box, score)


def _png(above: NDArray[np.bool_]) -> bytes:
    height, width = above.shape
    lines = np.zeros((height, 1 + (width + 7) // 8), np.uint8)
    lines[:, 1:] = np.packbits(above, axis=1)
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    data = compressor.compress(lines.data) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", _PALETTE), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def drawn_planes(
    outline: Sequence[tuple[float, float]], height: int, width: int
) -> NDArray[np.float32]:
    """Annotation planes of a filled outline: float32 [1, 2, 320, 320], background first."""
    scale_x, scale_y = NETWORK_SIDE / width, NETWORK_SIDE / height
    canvas = Image.new("1", (NETWORK_SIDE, NETWORK_SIDE))
    ImageDraw.Draw(canvas).polygon([(x * scale_x, y * scale_y) for x, y in outline], fill=1)
    inside = np.asarray(canvas)
    planes = np.empty((1, 2, NETWORK_SIDE, NETWORK_SIDE), np.float32)
    planes[0, 0], planes[0, 1] = ~inside, inside
    return planes


@dataclass(slots=True)
class Clock:
    """Seconds by part, of one straight-line run."""

    seconds: dict[str, float] = field(default_factory=dict)
    _moment: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """Adds the time since the last lap to a part."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._moment
        self._moment = now

    def of(self, *parts: str) -> float:
        """Seconds of some parts."""
        return sum(self.seconds.get(part, 0.0) for part in parts)


def opened(graph: Path, threads: int) -> Any:
    """Opens a graph in ONNX Runtime.

    Args:
        graph: Its file.
        threads: Of one run; 0: one per core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # As in the service: a spinning engine would slow what runs beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


class StraightLine:
    """The default model's graphs, called one after another.

    Args:
        repository: The model repository.
        family: Name of the family.
        threads: Of one graph run; 0: one per core.
    """

    def __init__(self, repository: Path, family: str, threads: int = 0) -> None:
        self._graphs: dict[str, Any] = {
            role: opened(repository / f"{family}_{role}" / "1" / "model.onnx", threads)
            for role in ("features", "guide", "decode")
        }
        self._maps = [output.name for output in self._graphs["features"].get_outputs()]
        self._taken = {
            role: [node.name for node in graph.get_inputs() if node.name in self._maps]
            for role, graph in self._graphs.items()
        }

    def prototypes(self, supports: Sequence[tuple[bytes, NDArray[np.float32]]]) -> _Floats:
        """Guidance of a support set: float32 [1, 2, channels].

        Args:
            supports: JPEG, and planes float32 [1, 2, 320, 320].
        """
        return self.timed_prototypes(supports, Clock())

    def timed_prototypes(
        self, supports: Sequence[tuple[bytes, NDArray[np.float32]]], clock: Clock
    ) -> _Floats:
        """As ``prototypes``; its parts are ``codec``, ``features``, ``guide`` and ``merge``."""
        rows, weights = [], []
        for jpeg, planes in supports:
            image = network_image(jpeg)
            clock.lap("codec")
            features = self.features(image)
            clock.lap("features")
            row, weight = self._run("guide", ["prototypes", "weights"], features, planes=planes)
            clock.lap("guide")
            rows.append(row)
            weights.append(weight[..., None])
        total = np.maximum(np.sum(weights, axis=0), 1e-12)
        merged: _Floats = (
            np.sum([r * w for r, w in zip(rows, weights, strict=True)], axis=0) / total
        ).astype(np.float32)
        clock.lap("merge")
        return merged

    def features(self, image: NDArray[np.uint8]) -> Maps:
        """Feature maps of a network image."""
        maps = self._graphs["features"].run(self._maps, {"image": image})
        return dict(zip(self._maps, maps, strict=True))

    def guide(self, features: Maps, planes: NDArray[np.float32]) -> _Floats:
        """Prototypes of one shot."""
        (row,) = self._run("guide", ["prototypes"], features, planes=planes)
        return row

    def decode(self, features: Maps, prototypes: _Floats) -> _Floats:
        """Logits float32 [2, h, w]."""
        (logits,) = self._run("decode", ["logits"], features, prototypes=prototypes)
        return logits[0, :, 0]

    def _run(
        self, role: str, outputs: Sequence[str], features: Maps, **others: _Floats
    ) -> Sequence[_Floats]:
        """Runs a graph on those of the feature maps that it takes."""
        feeds = {name: features[name] for name in self._taken[role]} | others
        return self._graphs[role].run(outputs, feeds)  # type: ignore[no-any-return]

    def segment(
        self, jpeg: bytes, prototypes: _Floats, height: int, width: int, clock: Clock
    ) -> Finding:
        """One photograph to its mask.

        Parts: ``decode_resize``, ``features``, ``decode``, ``answer``. The graphs run here too, so
        that the parts around them find the caches of the processor as a service finds them.
        """
        image = network_image(jpeg)
        clock.lap("decode_resize")
        features = self.features(image)
        clock.lap("features")
        logits = self.decode(features, prototypes)
        clock.lap("decode")
        found = finding(logits, height, width)
        clock.lap("answer")
        return found


class Annotator:
    """Another annotation of a known image, straight: draw, ``guide``, commit.

    A row of a SQLite file is replaced in a durable transaction, as the service's store promises it.

    Args:
        line: The graphs.
        folder: Where the file goes.
    """

    def __init__(self, line: StraightLine, folder: Path) -> None:
        self._line = line
        self._maps: Maps = {}
        self._size = (0, 0)
        self._database = sqlite3.connect(
            folder / "floor.db", isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(
            "CREATE TABLE tasks (id INTEGER PRIMARY KEY, header BLOB, support BLOB)"
        )
        self._database.execute("INSERT INTO tasks VALUES (1, x'00', x'00')")

    def know(self, jpeg: bytes) -> None:
        """Computes the feature maps of the photograph that is annotated from now on."""
        width, height = Image.open(io.BytesIO(jpeg)).size
        self._size = (height, width)
        self._maps = self._line.features(network_image(jpeg))

    def guide(self, outline: Sequence[tuple[float, float]]) -> Clock:
        """Draws an outline and runs ``guide``; returns the time of ``draw`` and ``guide``."""
        clock = Clock()
        planes = drawn_planes(outline, *self._size)
        clock.lap("draw")
        self._line.guide(self._maps, planes)
        clock.lap("guide")
        return clock

    def commit(self, content: bytes) -> None:
        """Replaces the row."""
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute(
            "UPDATE tasks SET header = ?, support = ? WHERE id = 1", (content[:300], content)
        )
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
