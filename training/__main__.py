# SPDX-License-Identifier: Apache-2.0
"""Command line of the recipe: `python -m training pack | distill | episodes | read | ...`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from export.methods.compact import CompactModel
from fewseg.evaluation import AnnotatedFolder
from training import blend, distill, episodes, evaluate, figures, floors, folds, pack, speed


def _stage(
    commands: Any,
    name: str,
    text: str,
    defaults: distill.DistillSettings | episodes.EpisodeSettings,
) -> argparse.ArgumentParser:
    stage: argparse.ArgumentParser = commands.add_parser(name, help=text)
    stage.add_argument("--pack", type=Path, required=True, help="file that `pack` wrote")
    stage.add_argument("--teacher", type=Path, required=True, help="archive of its weights")
    stage.add_argument(
        "--run", type=Path, required=True, help="folder for checkpoints; resumed if it has one"
    )
    stage.add_argument("--weights", type=Path, required=True, help="safetensors file to write")
    stage.add_argument("--steps", type=int, default=defaults.steps, help="end after so many")
    stage.add_argument("--minutes", type=float, help="end after so many, if that is sooner")
    stage.add_argument("--sizes", type=int, nargs="+", default=defaults.sizes, help="of pictures")
    stage.add_argument("--rate", type=float, default=defaults.rate, help="peak learning rate")
    stage.add_argument("--seed", type=int, default=defaults.seed)
    stage.add_argument("--device", default="cpu", help="cpu or cuda")
    return stage


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="put pictures and masks into one file")
    packing.add_argument("--data", type=Path, required=True, help="folder of annotated sets")
    packing.add_argument(
        "--pool", type=Path, required=True, help="folder with photos/ and saliency/"
    )
    packing.add_argument("--pack", type=Path, required=True, help="file to write, .npz")
    nowhere = Path()
    usual = distill.DistillSettings(nowhere, nowhere, nowhere, nowhere)
    first = _stage(commands, "distill", "first stage: imitate the teacher", usual)
    first.add_argument("--batch", type=int, default=usual.batch, help="pictures per step")
    common = episodes.EpisodeSettings(nowhere, nowhere, nowhere, nowhere, nowhere)
    second = _stage(commands, "episodes", "second stage: learn to segment", common)
    second.add_argument("--start", type=Path, required=True, help="weights of the first stage")
    second.add_argument("--tasks", type=int, default=common.tasks, help="tasks per step")
    second.add_argument("--pictures", type=int, default=common.pictures, help="pictures per task")
    second.add_argument("--trunk-rate", type=float, default=common.trunk_rate)
    second.add_argument("--companion", type=float, default=common.companion)
    second.add_argument(
        "--frozen",
        action=argparse.BooleanOptionalAction,
        default=common.frozen,
        help="keep the bottom-up part of the trunk as the first stage left it",
    )
    second.add_argument("--fold", type=int, choices=range(folds.FOLDS), help="leave it out")
    blending = commands.add_parser("blend", help="put runs together into the weights that ship")
    blending.add_argument(
        "--runs", type=_run, nargs="+", required=True, help="FILE or FILE=SHARE of each"
    )
    blending.add_argument(
        "--correction", type=float, default=1.0, help="part of the learned correction that stays"
    )
    blending.add_argument("--weights", type=Path, required=True, help="safetensors file to write")
    reading = commands.add_parser("read", help="read weights on the annotated sets of a pack")
    reading.add_argument("--pack", type=Path, required=True)
    reading.add_argument("--weights", type=Path, required=True)
    reading.add_argument("--fold", type=int, choices=range(folds.FOLDS), help="only its classes")
    reading.add_argument("--size", type=int, default=320)
    reading.add_argument("--once", action="store_true", help="read queries once, as in training")
    reading.add_argument(
        "--absent",
        action="store_true",
        help="instead: how often much is found in pictures that do not show the class",
    )
    reading.add_argument("--device", default="cpu", help="cpu or cuda")
    below = commands.add_parser("floors", help="score a set without a few-shot network")
    below.add_argument("--data", type=Path, required=True, help="folder of one annotated set")
    below.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    below.add_argument("--teacher", type=Path, help="archive: prototypes on its features as well")
    timing = commands.add_parser("speed", help="time the served graphs beside the teacher's trunk")
    timing.add_argument("--repository", type=Path, default=Path("model_repository"))
    timing.add_argument("--teacher", type=Path, required=True, help="archive of its weights")
    timing.add_argument("--rounds", type=int, default=60)
    drawing = commands.add_parser("figures", help="draw learning curves and results")
    drawing.add_argument("--curves", type=Path, nargs="+", default=[], help="<stage>.json")
    drawing.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        help="<set>-<shots>.json, as `fewseg --json evaluate` printed it",
    )
    drawing.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


def _run(text: str) -> tuple[Path, float]:
    """Parses FILE or FILE=SHARE."""
    path, separator, share = text.rpartition("=")
    return (Path(path), float(share)) if separator else (Path(text), 1.0)


def _read(options: dict[str, Any]) -> None:
    device = options["device"]
    packed = pack.load_pack(options["pack"], device)
    model = CompactModel.from_file(options["weights"]).to(device)
    classes: dict[str, frozenset[str] | None]
    if options["fold"] is None:
        classes = dict.fromkeys(evaluate.annotated_sets(packed.entries))
    else:
        classes = dict(folds.left_out(packed.entries, options["fold"]))
    found = evaluate.read_pack(
        model, packed, classes, options["size"], once=options["once"], absent=options["absent"]
    )
    print(json.dumps(found, indent=2))


def _floors(options: dict[str, Any]) -> None:
    source = AnnotatedFolder(options["data"])
    print(json.dumps(floors.read_floors(source, options["shots"], options["teacher"]), indent=2))


def _speed(options: dict[str, Any]) -> None:
    trunk = speed.teacher_graph(options["teacher"])
    for threads in (1, 2):
        found = speed.measure(options["repository"], trunk, threads, options["rounds"])
        print(json.dumps({"threads": threads, **found}))


def _figures(options: dict[str, Any]) -> None:
    figures.draw_curves(options["curves"], options["out"])
    if options["scores"]:
        figures.draw_scores(options["scores"], options["out"])


_COMMANDS: Final[Mapping[str, Callable[[dict[str, Any]], None]]] = {
    "pack": lambda options: pack.build_pack(options["data"], options["pool"], options["pack"]),
    "distill": lambda options: distill.train(distill.DistillSettings(**options)),
    "episodes": lambda options: episodes.train(episodes.EpisodeSettings(**options)),
    "blend": lambda options: blend.blend_files(**options),
    "read": _read,
    "floors": _floors,
    "speed": _speed,
    "figures": _figures,
}


def main() -> None:
    """Runs the command that the arguments name."""
    options = vars(_parser().parse_args())
    torch.set_num_threads(options.pop("threads"))
    if "sizes" in options:
        options["sizes"] = tuple(options["sizes"])
    _COMMANDS[options.pop("command")](options)


if __name__ == "__main__":
    main()
