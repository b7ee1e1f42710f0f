"""Read multipart/related as a stream: takes bytes, returns events.

The reader does not join chunks: the data of a part is returned as views of the input chunks. Between two chunks it buffers at most
the beginning of a delimiter, or the headers of one part.

Source: PS3.18 §8.6.1.2; RFC 2046 §5.1.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto

from gantry_standard import errors
from gantry_standard.http import parameters

_BOUNDARY = re.compile(r"[ -~]{0,999}[!-~]")
"""RFC 2046 §5.1.1 allows 70 characters of a smaller set; Orthanc sends 73. Whatever a header field can hold is read without ambiguity."""
_MOST_PADDING_BYTES = 1024
_HYPHEN, _CARRIAGE_RETURN = b"-\r"


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins. Header names are in lower case; a part may have none."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Bytes of the current part; the view stays valid as long as it is referenced."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is complete."""


@dataclass(frozen=True, slots=True)
class End:
    """The final boundary was read; bytes after it are ignored."""


Event = PartBegin | PartData | PartEnd | End


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a reader.

    Attributes:
        part_header_bytes: of one part; more is BadRequest.
        parts: of one payload; more is PayloadTooLarge.
    """

    part_header_bytes: int = 16 << 10
    parts: int = 100_000


class _State(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    DATA = auto()
    EPILOGUE = auto()


class Reader:
    """Splits one multipart payload.

    Tolerated: a preamble, a line break before the first boundary, line feeds alone, white space after a boundary, parts
    without headers, no parts at all, an epilogue.

    Args:
        boundary: value of the boundary parameter, without quotes.

    Raises:
        errors.BadRequest: the boundary is invalid.
    """

    def __init__(self, boundary: str, limits: Limits | None = None) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise errors.BadRequest(
                "the boundary of a multipart payload has 1 to 1,000 printable characters of ASCII, no space at its end; this one has not"
            )
        # Every delimiter begins after a line break: a line feed, and the carriage return before it if there is one.
        self._delimiter = b"\n--" + boundary.encode("ascii")
        self._limits = limits or Limits()
        self._state = _State.PREAMBLE
        self._parts = 0
        # Bytes that were not decided yet. The first `_not_data` of them belong to what came before the data: a line feed
        # that ends the headers, or (at the very beginning) stands for none, may also begin a delimiter.
        self._carry = b"\n"
        self._not_data = 1

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes and return the events that they complete.

        Raises:
            errors.BadRequest: part headers are invalid or too long.
            errors.PayloadTooLarge: there are too many parts.
        """
        events: list[Event] = []
        if self._state is _State.EPILOGUE or not chunk:
            return events
        data = self._carry + chunk if self._carry else chunk
        self._carry = b""
        position = 0
        while position >= 0:
            read = self._read_headers if self._state is _State.HEADERS else self._read_data
            position = read(data, position, events)
        return events

    def close(self) -> None:
        """End the input.

        Raises:
            errors.BadRequest: the final boundary is missing.
        """
        if self._state is _State.PREAMBLE:
            raise errors.BadRequest("the payload does not contain the boundary that Content-Type names")
        if self._state is not _State.EPILOGUE:
            raise errors.BadRequest(f"the payload ends within part {self._parts}: the final boundary is missing")

    def _read_headers(self, data: bytes, begin: int, events: list[Event]) -> int:
        """Read the headers of a part; `begin` is the line feed that ends the delimiter's line. Return the next offset, or -1."""
        most = begin + self._limits.part_header_bytes
        with_cr, alone = data.find(b"\n\r\n", begin, most + 3), data.find(b"\n\n", begin, most + 2)
        if with_cr < 0 and alone < 0:
            if len(data) > most:
                raise errors.BadRequest(
                    f"part {self._parts + 1}: no end of its headers within {self._limits.part_header_bytes} bytes; expected an empty line"
                )
            self._carry = data[begin:]
            return -1
        end = with_cr if alone < 0 or 0 <= with_cr < alone else alone
        self._parts += 1
        if self._parts > self._limits.parts:
            raise errors.PayloadTooLarge(f"the payload has more than {self._limits.parts} parts")
        events.append(PartBegin(_parse_headers(data[begin:end], self._parts)))
        self._state = _State.DATA
        self._not_data = 1
        return end + (2 if end == with_cr else 1)

    def _read_data(self, data: bytes, begin: int, events: list[Event]) -> int:
        """Return data up to the next delimiter as events. Return the next offset, or -1."""
        first = begin + self._not_data
        search = begin
        while (delimiter_at := data.find(self._delimiter, search)) >= 0:
            line_end = self._end_of_delimiter(data, delimiter_at + len(self._delimiter))
            if line_end is None:
                return self._hold(data, first, delimiter_at, events)
            if line_end >= 0:
                self._emit(data, first, _before_line_break(data, first, delimiter_at), events)
                if self._state is _State.DATA:
                    events.append(PartEnd())
                if line_end == 0:
                    self._state = _State.EPILOGUE
                    events.append(End())
                    return -1
                self._state = _State.HEADERS
                return line_end
            search = delimiter_at + 1
        last = data.rfind(b"\n", max(search, len(data) - len(self._delimiter)))
        if last >= 0 and self._delimiter.startswith(data[last:]):
            return self._hold(data, first, last, events)
        return self._hold(data, first, len(data), events)

    def _hold(self, data: bytes, first: int, undecided: int, events: list[Event]) -> int:
        """Pass on the data before what may be a delimiter, and keep the rest for the next chunk."""
        keep = _before_line_break(data, first, undecided)
        self._emit(data, first, keep, events)
        keep = min(keep, undecided)
        self._not_data = max(0, first - keep)
        self._carry = data[keep:]
        return -1

    def _emit(self, data: bytes, first: int, end: int, events: list[Event]) -> None:
        if end > first and self._state is _State.DATA:
            events.append(PartData(memoryview(data)[first:end]))

    @staticmethod
    def _end_of_delimiter(data: bytes, after: int) -> int | None:
        """Look at what follows a delimiter's characters.

        Returns:
            Position of the line feed that ends its line; 0 for the final delimiter; -1: it was data that only looked like a
            delimiter; None: more bytes are needed.
        """
        if data.startswith(b"--", after):
            return 0
        # Lengths are compared, not slices of the rest: data may hold what looks like a delimiter again and again.
        left = len(data) - after
        if left == 0 or (left == 1 and data[after] == _HYPHEN):
            return None
        position = after
        while position < len(data) and data[position] in b" \t":
            position += 1
            if position - after > _MOST_PADDING_BYTES:
                return -1
        if data.startswith(b"\r\n", position):
            return position + 1
        if data.startswith(b"\n", position):
            return position
        left = len(data) - position
        return None if left == 0 or (left == 1 and data[position] == _CARRIAGE_RETURN) else -1


def _before_line_break(data: bytes, first: int, line_feed: int) -> int:
    """Return where data ends before a line feed: before its carriage return, when that is not before `first`."""
    return line_feed - 1 if line_feed > first and data[line_feed - 1] == _CARRIAGE_RETURN else line_feed


def _parse_headers(block: bytes, part: int) -> dict[str, str]:
    headers: dict[str, str] = {}
    # RFC 5322 §2.2.3: a line that begins with white space goes on with the one before.
    unfolded = re.sub(rb"\r?\n[ \t]+", b" ", block)
    for line in unfolded.splitlines():
        if not line.strip():
            continue
        name, colon, value = line.partition(b":")
        if not colon or not name.strip():
            raise errors.BadRequest(f"part {part}: a header line has no name and colon")
        headers.setdefault(name.strip().decode("latin-1").lower(), value.strip().decode("latin-1"))
    return headers


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z\-]+")


def parse_content_type(text: str) -> tuple[str, dict[str, str]]:
    """Split a Content-Type into media type and parameters.

    Quotes are optional, also where the RFC requires them (`type=application/dicom`).

    Returns:
        Media type and parameter names in lower case; values unchanged, without quotes. Of a repeated parameter the first counts.

    Raises:
        errors.BadRequest: it is not a media type with parameters.

    Source: RFC 9110 §8.3.1; PS3.18 §8.7.1.
    """
    media_type, *pieces = parameters.split(text, ";")
    media_type = media_type.lower()
    main, slash, sub = media_type.partition("/")
    if not slash or not _TOKEN.fullmatch(main) or not _TOKEN.fullmatch(sub):
        raise errors.BadRequest("Content-Type is no media type, expected type/subtype")
    values: dict[str, str] = {}
    for piece in filter(None, pieces):
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not _TOKEN.fullmatch(name) or ('"' in value and not parameters.is_quoted(value)):
            raise errors.BadRequest("a parameter of Content-Type cannot be read, expected ;name=value")
        values.setdefault(name.lower(), parameters.unquote(value))
    return media_type, values
