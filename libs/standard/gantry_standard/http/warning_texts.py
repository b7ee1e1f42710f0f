"""Lists of names in the text of a Warning header or an error message.

A client may send thousands of names that have no effect, and a header field must stay short (proxies take 8 KiB for the whole head).

Source: PS3.18 §8.4.3.
"""

from collections.abc import Sequence

NAMES_SHOWN = 5
NAME_CHARACTERS = 64


def first_of(names: Sequence[str]) -> str:
    """Return the first 5 names, each cut at 64 characters, and the number of the others."""
    shown = [name if len(name) <= NAME_CHARACTERS else f"{name[:NAME_CHARACTERS]}..." for name in names[:NAMES_SHOWN]]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
