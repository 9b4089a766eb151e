# SPDX-License-Identifier: Apache-2.0
"""Command line of the recipe: `python -m training pack | distill | episodes | evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from export.methods.compact import CompactTrunk
from training import distill, episodes, evaluate, pack

SETS = ("coco-mini", "ccp-fashion", "davis16-20x10", "magnetic-tile")


def _stage(commands: Any, name: str, text: str, steps: int) -> argparse.ArgumentParser:
    stage: argparse.ArgumentParser = commands.add_parser(name, help=text)
    stage.add_argument("--pack", type=Path, required=True, help="folder that `pack` wrote")
    stage.add_argument(
        "--run", type=Path, required=True, help="folder for checkpoints; resumed if it has one"
    )
    stage.add_argument("--weights", type=Path, required=True, help="safetensors file to write")
    stage.add_argument("--steps", type=int, default=steps)
    stage.add_argument("--seed", type=int, default=0)
    return stage


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="decode pictures and masks once")
    packing.add_argument("--data", type=Path, required=True, help="folder of annotated sets")
    packing.add_argument(
        "--pool", type=Path, required=True, help="folder with photos/ and saliency/"
    )
    packing.add_argument("--pack", type=Path, required=True, help="folder to write")
    first = _stage(commands, "distill", "first stage: imitate the teacher", 3900)
    first.add_argument(
        "--teacher", type=Path, required=True, help="archive of the teacher's weights"
    )
    first.add_argument("--batch", type=int, default=32)
    second = _stage(commands, "episodes", "second stage: learn to segment", 2100)
    second.add_argument("--start", type=Path, required=True, help="weights of the first stage")
    second.add_argument(
        "--left-out", nargs="*", default=[], help="classes never drawn, for a held-out check"
    )
    reading = commands.add_parser("evaluate", help="read weights on annotated sets")
    reading.add_argument("--weights", type=Path, required=True)
    reading.add_argument("--data", type=Path, required=True, help="folder of annotated sets")
    reading.add_argument("--sets", nargs="+", default=SETS)
    reading.add_argument("--size", type=int, default=320)
    reading.add_argument(
        "--fold", type=int, help="only the classes of this fold, in sets that have folds"
    )
    return parser


def _evaluate(options: dict[str, Any]) -> None:
    size = options["size"]
    readings = [
        evaluate.Reading(size, shots, points, background)
        for points, background in ((0, True), (1, True), (5, True), (5, False))
        for shots in (1, 5)
    ]
    features = evaluate.trunk_features(CompactTrunk.from_file(options["weights"]))
    found = evaluate.report(features, options["data"], options["sets"], readings, options["fold"])
    print(json.dumps(found, indent=2))


def main() -> None:
    """Runs the command that the arguments name."""
    options = vars(_parser().parse_args())
    torch.set_num_threads(options.pop("threads"))
    command = options.pop("command")
    if command == "pack":
        pack.build_pack(options["data"], options["pool"], options["pack"])
    elif command == "distill":
        distill.train(distill.DistillSettings(**options))
    elif command == "episodes":
        options["left_out"] = frozenset(options["left_out"])
        episodes.train(episodes.EpisodeSettings(**options))
    elif command == "evaluate":
        _evaluate(options)


if __name__ == "__main__":
    main()
