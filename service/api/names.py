"""Resource names, ids and page tokens: text on the wire, more than text in the domain."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
import uuid
from collections.abc import Collection
from typing import Final

from service.core.errors import InvalidArgumentError
from service.core.types import TaskName

#: Who owns tasks whose parent is not named.
DEFAULT_TENANT: Final = "default"

_ID: Final = r"[a-z][a-z0-9-]{0,62}"
_TASK_ID: Final = re.compile(_ID)
_PARENT: Final = re.compile(rf"tenants/({_ID})")
_TASK_NAME: Final = re.compile(rf"tenants/({_ID})/tasks/({_ID})")
_SUPPORT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,63}")
_ALIAS: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
_CLASS_NAME_CHARACTERS: Final = 63
_DISPLAY_NAME_CHARACTERS: Final = 200
_ETAG_CHARACTERS: Final = 128
# Categories of Unicode: control; format, such as a space without width; separators
# of lines and of paragraphs.
_CONTROL: Final = frozenset({"Cc"})
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})
_DEFAULT_PAGE: Final = 50
_LARGEST_PAGE: Final = 1000


def tenant_of(parent: str) -> str:
    """Reads ``tenants/{tenant}``; empty means the default tenant.

    Raises:
        InvalidArgumentError: The parent is anything else (INVALID_NAME).
    """
    if not parent:
        return DEFAULT_TENANT
    match = _PARENT.fullmatch(parent)
    if match is None:
        raise InvalidArgumentError(
            "INVALID_NAME", "Write the parent as tenants/{tenant}.", field="parent"
        )
    return match[1]


def task_name(name: str) -> TaskName:
    """Reads ``tenants/{tenant}/tasks/{task}``.

    Raises:
        InvalidArgumentError: The name is anything else (INVALID_NAME).
    """
    match = _TASK_NAME.fullmatch(name)
    if match is None:
        raise InvalidArgumentError(
            "INVALID_NAME",
            "Write the task's name as tenants/{tenant}/tasks/{task}.",
            field="name",
        )
    return TaskName(tenant=match[1], task=match[2])


def task_id(text: str) -> str:
    """Checks the last part of a new task's name; empty asks for one.

    Raises:
        InvalidArgumentError: It breaks the pattern (INVALID_TASK_ID).
    """
    if text and _TASK_ID.fullmatch(text) is None:
        raise InvalidArgumentError(
            "INVALID_TASK_ID",
            "A task id has 1 to 63 lower-case letters, digits or '-', and starts with a letter.",
            field="task_id",
        )
    return text


def support_id(text: str, *, required: bool) -> str:
    """Checks the id of a support.

    Args:
        text: The id.
        required: Whether it names a support that is there, so that it cannot be empty.

    Raises:
        InvalidArgumentError: It breaks the pattern (INVALID_SUPPORT_ID).
    """
    if not text and not required:
        return text
    if _SUPPORT_ID.fullmatch(text) is None:
        raise InvalidArgumentError(
            "INVALID_SUPPORT_ID",
            "A support id has 1 to 63 letters, digits, '-', '_' or '.'.",
            field="support_id",
        )
    return text


def model_alias(text: str) -> str:
    """Checks the alias of a model; empty means the default.

    Raises:
        InvalidArgumentError: It breaks the pattern (INVALID_MODEL).
    """
    if text and _ALIAS.fullmatch(text) is None:
        raise InvalidArgumentError(
            "INVALID_MODEL",
            "A model is named by its alias: 1 to 40 lower-case letters, digits or '-', "
            "starting with a letter.",
            field="model",
        )
    return text


def class_name(text: str, field: str) -> str:
    """Reads the name of a class: what looks the same is the same class.

    Args:
        text: The name.
        field: Where it stands.

    Returns:
        The name in Unicode normalisation form C.

    Raises:
        InvalidArgumentError: It cannot be a class's name (INVALID_CLASS_NAME).
    """
    name = unicodedata.normalize("NFC", text)
    if (
        not 1 <= len(name) <= _CLASS_NAME_CHARACTERS
        or name != name.strip()
        or _has_any_of(_INVISIBLE, name)
    ):
        raise InvalidArgumentError(
            "INVALID_CLASS_NAME",
            f"A class name has 1 to {_CLASS_NAME_CHARACTERS} characters, none of them a control "
            "or format character or a line separator, and no blank at either end.",
            field=field,
        )
    return name


def display_name(text: str) -> str:
    """Checks free text for people.

    Raises:
        InvalidArgumentError: It is too long or not plain text (INVALID_DISPLAY_NAME).
    """
    if len(text) > _DISPLAY_NAME_CHARACTERS or _has_any_of(_CONTROL, text):
        raise InvalidArgumentError(
            "INVALID_DISPLAY_NAME",
            f"A display name has at most {_DISPLAY_NAME_CHARACTERS} characters, none of them a "
            "control character.",
            field="display_name",
        )
    return text


def request_id(text: str) -> str:
    """Checks the id that makes a request safe to repeat; empty means none.

    Returns:
        The UUID in its canonical form.

    Raises:
        InvalidArgumentError: It is no UUID (INVALID_REQUEST_ID).
    """
    if not text:
        return text
    try:
        parsed = str(uuid.UUID(text))
    except ValueError:
        parsed = ""
    if parsed != text.lower():
        raise InvalidArgumentError(
            "INVALID_REQUEST_ID",
            "A request id is a UUID such as 123e4567-e89b-42d3-a456-426614174000.",
            field="request_id",
        )
    return parsed


def etag(text: str) -> str:
    """Checks that an etag could be one of this server's; empty means any revision.

    Raises:
        InvalidArgumentError: No server made it (MALFORMED_ETAG).
    """
    if len(text) > _ETAG_CHARACTERS or not text.isascii() or _has_any_of(_CONTROL, text):
        raise InvalidArgumentError(
            "MALFORMED_ETAG", "Send the etag as an earlier answer gave it.", field="etag"
        )
    return text


def page_size(number: int) -> int:
    """Reads the size of a page: 0 means 50, more than 1000 means 1000 (AIP-158).

    Raises:
        InvalidArgumentError: It is negative (INVALID_PAGE_SIZE).
    """
    if number < 0:
        raise InvalidArgumentError(
            "INVALID_PAGE_SIZE", "A page has no fewer than 0 entries.", field="page_size"
        )
    return min(number or _DEFAULT_PAGE, _LARGEST_PAGE)


def write_page_token(last_id: str) -> str:
    """Makes the token of the page after the entry of that id."""
    return base64.urlsafe_b64encode(last_id.encode("ascii")).decode("ascii")


def read_page_token(token: str) -> str:
    """Reads a token of ``write_page_token``; empty means the first page.

    Returns:
        The id of the last entry of the page before, or empty.

    Raises:
        InvalidArgumentError: No page gave it (INVALID_PAGE_TOKEN).
    """
    if not token:
        return ""
    try:
        last_id = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode(
            "ascii"
        )
    except (binascii.Error, UnicodeError):
        last_id = ""
    if _TASK_ID.fullmatch(last_id) is None:
        raise InvalidArgumentError(
            "INVALID_PAGE_TOKEN",
            "Send the page token as the previous page gave it.",
            field="page_token",
        )
    return last_id


def _has_any_of(categories: Collection[str], text: str) -> bool:
    return any(unicodedata.category(character) in categories for character in text)
