"""Unique identifiers. Source: PS3.5 §9."""

import re

# Leading zeros in a component are wrong (PS3.5 §9.1) and too frequent in old archives to refuse.
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_valid_uid(text: str) -> bool:
    """Say whether a text is digits in components separated by dots, 1 to 64 characters, no component empty."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None
