# SPDX-License-Identifier: Apache-2.0
"""How long the served graphs take beside the teacher's trunk, on this machine's processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from export.family import Graph, TensorSpec
from export.graphs import export_graph
from training.teacher import Teacher

SIDE = 320
"""Height and width of the default model's input."""


class _Trunk(nn.Module):
    """The teacher up to its coarse map, for pictures [batch, 3, side, side] in [0, 1]."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pictures: Tensor) -> Tensor:
        coarse: Tensor = self.teacher(pictures)["coarse"]
        return coarse


def teacher_graph(archive: Path, side: int = SIDE) -> bytes:
    """Exports the teacher's trunk up to its coarse map.

    Args:
        archive: Of its weights.
        side: Height and width of pictures.
    """
    trunk = _Trunk(Teacher(archive, torch.float32))
    cells = side // 16 - 1
    return export_graph(
        Graph(
            role="features",
            module=trunk,
            inputs=(TensorSpec("pictures", (3, side, side)),),
            outputs=(TensorSpec("coarse", (512, cells, cells)),),
            traced=True,
        )
    )


def measure(
    repository: Path, teacher: bytes, threads: int, rounds: int = 60, side: int = SIDE
) -> dict[str, float]:
    """Runs teacher, `features` and `decode` of one way in turn.

    Args:
        repository: Folder with one family of `compact`.
        teacher: Of `teacher_graph`.
        threads: Of ONNX Runtime; they do not spin while they wait.
        rounds: Of which medians are taken.
        side: Height and width of pictures.

    Returns:
        Milliseconds by what ran.

    Raises:
        ValueError: The repository does not hold one family.
    """
    courses = _courses(repository, teacher, threads, side)
    taken: dict[str, list[float]] = {name: [] for name in courses}
    for _ in range(rounds):
        for name, run in courses.items():
            begun = time.perf_counter()
            run()
            taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: round(statistics.median(times), 1) for name, times in taken.items()}


def _courses(
    repository: Path, teacher: bytes, threads: int, side: int
) -> dict[str, Callable[[], Any]]:
    found = sorted(repository.glob("*_features/1/model.onnx"))
    if len(found) != 1:
        raise ValueError(f"{repository} holds {len(found)} families where one is wanted.")
    stored = str(found[0])
    trunk = _session(teacher, threads)
    features = _session(stored, threads)
    decode = _session(stored.replace("_features/", "_decode/"), threads)
    pictures = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    image = (pictures.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    names = [output.name for output in features.get_outputs()]
    maps = dict(zip(names, features.run(None, {"image": image}), strict=True))
    (width,) = {entry.shape[-1] for entry in decode.get_inputs() if entry.name == "prototypes"}
    known = {**maps, "prototypes": np.ones((1, 2, width), np.float32)}
    return {
        "teacher": lambda: trunk.run(None, {"pictures": pictures}),
        "features": lambda: features.run(None, {"image": image}),
        "decode": lambda: decode.run(None, known),
    }


def _session(model: bytes | str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # As served: a thread that spins takes a core from the rest of the service.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
