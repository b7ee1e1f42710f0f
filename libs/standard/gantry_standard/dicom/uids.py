"""Unique identifiers. Source: PS3.5 §9."""

import re

# Leading zeros in a component are invalid (PS3.5 §9.1), but too frequent in old archives to refuse.
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_valid_uid(text: str) -> bool:
    """Return whether a text is 1 to 64 characters of digits in components separated by dots, without an empty component."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None
