"""Scenarios: what is sent, how often, and to what kind of server. Read from TOML."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from loadtests.arrivals import Arrivals
from loadtests.photographs import STANDARD_SIZE

FOLDER = Path(__file__).parent / "scenarios"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ScenarioError(Exception):
    """A scenario cannot be read; the message says what is wrong."""


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often, and for how long.

    Attributes:
        arrivals: Poisson, or equal gaps.
        rate: Arrivals per second. Of streams: frames per second of each.
        capacity_share: Instead of ``rate``: a share of the throughput that the server
            reached right before, measured with as many requests at once as keep it busy.
        seconds: Length of a repeat.
        warm_up_seconds: Sent at the same rate before each repeat, and thrown away.
        repeats: Further runs, for the spread.
        deadline_seconds: Deadline of each request.
        lag_limit_seconds: A run in which 1 % of the requests left later than this after their
            time measured the generator and is marked invalid.
        processes: Of the generator; 0: one per 400 requests per second.
    """

    arrivals: Arrivals = Arrivals.POISSON
    rate: Positive | None = None
    capacity_share: Positive | None = None
    seconds: Positive = 15.0
    warm_up_seconds: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    repeats: Count = 3
    deadline_seconds: Positive = 5.0
    lag_limit_seconds: Positive = 0.01
    processes: Annotated[int, msgspec.Meta(ge=0)] = 0


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one arrival does.

    Attributes:
        kind: ``segment``: one new image; ``clicks``: one more click on a support, then its mask;
            ``stream``: one frame of a video; ``batch``: streams of images as fast as the
            server takes them; ``cold_start``: a fresh process and its first answers.
        tasks: How many are registered before.
        shots: Supports of each.
        support_images: Distinct images that the supports are drawn from; 0: each its own.
        images: Distinct images to segment. When there are more arrivals they come again,
            after all others.
        sizes: (height, width) of them, in turns.
        zipf: Popularity of the tasks falls as rank to the power of minus this; 0: in turns.
        streams: Streams at once (``stream``, ``batch``).
        window: Frames of a stream without an answer (``batch``).
        format: Of the masks.
    """

    kind: Literal["segment", "clicks", "stream", "batch", "cold_start"] = "segment"
    tasks: Count = 1
    shots: Count = 1
    support_images: Annotated[int, msgspec.Meta(ge=0)] = 0
    images: Count = 400
    sizes: Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(min_length=1)] = (STANDARD_SIZE,)
    zipf: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    streams: Count = 1
    window: Count = 8
    format: Literal["png", "rle", "raw"] = "png"


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A scenario file.

    Attributes:
        name: Of the file.
        title: For the report.
        description: What it shows.
        load, work: See there.
        server: Flags for a server that is started for this scenario, such as
            ``{"guidance-bytes" = "1MiB"}``; a server that runs already is taken as it is.
    """

    title: str
    description: str
    load: Load
    work: Work = msgspec.field(default_factory=Work)
    server: dict[str, str] = msgspec.field(default_factory=dict)
    name: str = ""


def names() -> list[str]:
    """Names of the scenarios that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_path: str) -> Scenario:
    """Reads a scenario.

    Args:
        name_or_path: One of ``names()``, or a file of one's own.

    Raises:
        ScenarioError: There is none, or it is wrong.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = FOLDER / f"{name_or_path}.toml"
    try:
        scenario = msgspec.toml.decode(path.read_bytes(), type=Scenario)
    except FileNotFoundError:
        raise ScenarioError(
            f"there is no scenario {name_or_path}; there are {', '.join(names())}"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    _check(path, scenario)
    return msgspec.structs.replace(scenario, name=path.stem)


def _check(path: Path, scenario: Scenario) -> None:
    # TOML knows infinity, and no run would ever be made of it.
    numbers = msgspec.structs.asdict(scenario.load) | {"zipf": scenario.work.zipf}
    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ScenarioError(f"{path}: {name} is {value:g}")
    timed = scenario.work.kind in ("segment", "clicks", "stream")
    rates = [scenario.load.rate, scenario.load.capacity_share]
    if timed and sum(rate is not None for rate in rates) != 1:
        raise ScenarioError(f"{path}: load needs either rate or capacity_share")
    if scenario.work.kind == "stream" and scenario.load.rate is None:
        raise ScenarioError(f"{path}: a stream needs a rate")
