"""Which field of a request an error of the core is about.

The core knows a request by its parts, not by its message: the path that it
gives, if any, is completed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from service.core import errors

#: Kinds that always have a field at fault.
_ABOUT_A_FIELD: Final = (
    errors.InvalidArgumentError,
    errors.NotFoundError,
    errors.AlreadyExistsError,
    errors.FailedPreconditionError,
    errors.AbortedError,
)
#: What says which task, or where to look for tasks.
_SUBJECT: Final = ("name", "parent")
#: Fields at fault by reason, the first that a message has.
_SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "TASK_EXISTS": ("task_id",),
    "CLASS_WITHOUT_PIXELS": ("annotation", "support_id"),
}
_FIRST_PART: Final = re.compile(r"[^.\[]*")


def placed(error: errors.FewSegError, message: Descriptor, within: str = "") -> errors.FewSegError:
    """Completes the path of the field at fault.

    Args:
        error: What the core, or a converter, says.
        message: Type of the message whose fields its path begins with.
        within: Where that message itself stands, such as ``opening``; paths into
            other messages are left alone.

    Returns:
        The error with its path; itself if no field is at fault.
    """
    if error.field is None:
        if not isinstance(error, _ABOUT_A_FIELD):
            return error
        subjects = (*_SUBJECTS.get(error.reason, ()), *_SUBJECT)
        subject = next((one for one in subjects if one in message.fields_by_name), None)
        if subject is None:
            return error
        error = error.within(subject)
    first = _FIRST_PART.match(error.field or "")
    if within and first is not None and first[0] in message.fields_by_name:
        return error.within(within)
    return error


@contextmanager
def placing(message: type[Message], within: str = "") -> Iterator[None]:
    """Completes the paths of the errors that the body raises; see ``placed``."""
    try:
        yield
    except errors.FewSegError as error:
        raise placed(error, message.DESCRIPTOR, within) from None
