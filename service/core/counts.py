"""How many of a thing one request may hold."""

from __future__ import annotations

from service.core.errors import OutOfLimitsError


def check_count(what: str, count: int, limit: int, *, field: str) -> None:
    """Refuses more of a thing than a server takes.

    The edge asks before it converts anything, the core once it knows what is there already.

    Args:
        what: The things, in the plural: ``marks``, ``mask values``.
        count: How many there are.
        limit: How many there may be.
        field: Where they stand.

    Raises:
        OutOfLimitsError: There are too many (TOO_MANY_MARKS, TOO_MANY_MASK_VALUES, ...).
    """
    if count > limit:
        raise OutOfLimitsError(
            f"TOO_MANY_{what.upper().replace(' ', '_')}",
            f"This server takes at most {limit} {what} here; there are {count}.",
            field=field,
            metadata={"limit": str(limit), "count": str(count)},
        )
