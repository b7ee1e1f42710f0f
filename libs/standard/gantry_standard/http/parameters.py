"""Lists and parameters of header fields, read in time in proportion to their length.

Header fields come from clients, also those of the parts of a payload. So they are scanned once from left to right; a regular expression
with several repetitions side by side would try them all over again at every place.

Source: RFC 9110 §5.6.1 to §5.6.6.
"""

import re

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def split(text: str, separator: str) -> list[str]:
    """Split at a character outside quoted strings, and strip each piece. A quoted string that is not closed reaches to the end."""
    if '"' not in text:
        return [piece.strip() for piece in text.split(separator)]
    pieces: list[str] = []
    begin = position = 0
    end, quote = text.find(separator), text.find('"')
    while end >= 0:
        if 0 <= quote < end:
            position = _end_of_quoted(text, quote + 1)
            quote = text.find('"', position)
            if end < position:
                end = text.find(separator, position)
            continue
        pieces.append(text[begin:end])
        begin = end + 1
        end = text.find(separator, begin)
    pieces.append(text[begin:])
    return [piece.strip() for piece in pieces]


def _end_of_quoted(text: str, position: int) -> int:
    """Return where a quoted string ends that began before `position`: behind its closing quotation mark, or the end of the text."""
    quote, backslash = text.find('"', position), text.find("\\", position)
    while 0 <= backslash < quote:
        position = backslash + 2
        if quote < position:
            quote = text.find('"', position)
        backslash = text.find("\\", position)
    return quote + 1 if quote >= 0 else len(text)


def is_quoted(value: str) -> bool:
    """Say whether a value is one quoted string, from its first character to its last."""
    return len(value) > 1 and value[0] == '"' and _end_of_quoted(value, 1) == len(value) and value[-1] == '"' and not _ends_escaped(value)


def _ends_escaped(value: str) -> bool:
    """Say whether the last quotation mark is itself escaped, so that the string is not closed."""
    before = value[1:-1]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def unquote(value: str) -> str:
    """Return what a quoted string says; any other value as it is."""
    return _ESCAPED.sub(r"\1", value[1:-1]) if is_quoted(value) else value
