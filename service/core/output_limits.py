"""What an answer would take, told before any of it is computed."""

from __future__ import annotations

from service.core.errors import OutOfLimitsError
from service.core.family import ModelFamily
from service.core.limits import Limits
from service.core.types import Size

_PROBABILITY_BYTES = 2


def check_given_size(size: Size, limits: Limits) -> None:
    """Refuses a mask size of the caller's own that is too large.

    Raises:
        OutOfLimitsError: OUTPUT_TOO_LARGE.
    """
    side = max(size.height, size.width)
    for what, count, limit in (
        ("pixels", size.pixels, limits.output_pixels),
        ("rows or columns", side, limits.image_side),
    ):
        if count > limit:
            raise OutOfLimitsError(
                "OUTPUT_TOO_LARGE",
                f"A mask of {size} has {count} {what}; at most {limit} are given here.",
                field="options.given_size",
                metadata={"limit": str(limit), "count": str(count)},
            )


def check_output(
    size: Size,
    ways: int,
    probabilities: bool,
    family: ModelFamily,
    limits: Limits,
    *,
    shots: int = 1,
) -> None:
    """Refuses an answer that would take too much work, or would not fit into a message.

    Args:
        size: Of the mask.
        ways: Classes of the task.
        probabilities: Whether they are to be returned per pixel.
        family: Says whether the background has a plane too.
        limits: Of the server.
        shots: Of which each pixel's decision takes one plane per way.

    Raises:
        OutOfLimitsError: OUTPUT_TOO_LARGE or ANSWER_TOO_LARGE.
    """
    values = size.pixels * ways * shots
    if values > limits.output_values:
        raise OutOfLimitsError(
            "OUTPUT_TOO_LARGE",
            f"A mask of {size} takes {values} values to be weighed, as the task has {ways} "
            f"classes; at most {limits.output_values} are weighed here: ask for a smaller mask.",
            field="options",
            metadata={"limit": str(limits.output_values), "count": str(values)},
        )
    nbytes = _PROBABILITY_BYTES * (family.background_planes + ways) * size.pixels
    if probabilities and nbytes > limits.message_bytes:
        raise OutOfLimitsError(
            "ANSWER_TOO_LARGE",
            f"The probabilities take {nbytes} bytes and a message holds {limits.message_bytes}: "
            "ask for a smaller mask, or for no probabilities.",
            field="options.probabilities",
            metadata={"limit": str(limits.message_bytes), "size": str(nbytes)},
        )
