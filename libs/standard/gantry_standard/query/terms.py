"""Index terms: the searchable values of a data set, normalised for comparison.

A term is a path, a value and the item that contains it. Values are normalised per VR so that equality is string equality and a range is a
range of strings: PN folded (no case, no accents), numbers as canonical decimals, DA, TM and DT padded, DT in UTC.

Not indexed: OB OD OF OL OV OW UN, and LT ST UT except for workitems. Values are cut at 1,024 characters. Per-Frame Functional Groups
keep distinct values without item identity. A data set has at most 20,000 terms.

Source: PS3.4 §C.2.2.2; PS3.18 §8.3.4.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from typing import Any, NamedTuple

from gantry_standard.dicom.value_forms import READ_DATE, READ_DATE_TIME, READ_TIME
from gantry_standard.query.query_attributes import COMPUTED, DATE_TIME_PAIRS, is_private_creator

NOT_INDEXED = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN", "LT", "ST", "UT"])
TEXTS = frozenset(["LT", "ST", "UT"])
"""The VRs of long text among them; they are indexed for workitems."""
NUMBERS = frozenset(["DS", "IS", "FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"])
SHORT_FORMS = NUMBERS | {"AT", "DA", "DT", "TM"}
"""VRs whose values have few characters."""
MAXIMUM_CHARACTERS = 1024
MAXIMUM_FOLDED_CHARACTERS = 2 * MAXIMUM_CHARACTERS
"""Characters of a name that are folded; half of them may be combining marks, which folding removes."""
MAXIMUM_TERMS = 20_000
MAXIMUM_DEPTH = 64
MAXIMUM_CREATOR_CHARACTERS = 64
"""Longest private creator in a path: as long as a valid one (LO). A path has up to MAXIMUM_DEPTH of them."""
CUT = "\x1e"
"""Ends a value that was cut."""
PER_FRAME_FUNCTIONAL_GROUPS = "52009230"
ODD = frozenset("13579BDFbdf")
"""Last digits of private groups: `query_attributes.is_private` for every tag of a data set, as a look-up."""
CACHED_CHARACTERS = 64
"""Longer values are not cached."""
EXACT_DIGITS = 28
"""Digits of the Decimal context."""


class Term(NamedTuple):
    """One value that can be matched.

    Attributes:
        path: tags from the root joined by "."; private tags as `term_component` gives them.
        item: number of the item that contains it, unique in the data set; 0: the root, or no item identity.
        root: number of the enclosing item of the outermost sequence; 0 as above.
    """

    path: str
    value: str
    item: int = 0
    root: int = 0


_TERM: Callable[[tuple[str, str, int, int]], Term] = partial(tuple.__new__, Term)
"""Creates a Term without the Python function that sets field defaults: an instance has some 75 terms."""


@dataclass(slots=True)
class Terms:
    """The terms of one data set, and how many values each limit left out."""

    terms: list[Term] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def term_component(tag: str, private_creator: str = "") -> str:
    """Return the path component of a tag; private tags by creator, independent of their block (PS3.5 §7.8.1)."""
    return f"{tag[:4]}xx{tag[6:]}:{private_creator[:MAXIMUM_CREATOR_CHARACTERS]}" if private_creator else tag


def combined(date_tag: str) -> str:
    """Return the path of a combined date and time."""
    return f"{date_tag}+{DATE_TIME_PAIRS[date_tag]}"


@lru_cache(4096)
def fold_name(text: str) -> str:
    """Return a component group of a PN for comparison: without case, accents, and trailing delimiters.

    Only the first 2,048 characters count: the time to sort combining marks grows with the square of their number.
    """
    decomposed = unicodedata.normalize("NFKD", text[:MAXIMUM_FOLDED_CHARACTERS].casefold())
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return "^".join(part.strip() for part in bare.split("^")).rstrip("^")


def number(text: str) -> str:
    """Return a number as its canonical decimal.

    Raises:
        ValueError: it is not a number, or its exponent is beyond 400.
    """
    if text.isdigit() and text.isascii() and text[0] != "0" and len(text) <= EXACT_DIGITS:
        return text
    try:
        value = Decimal(text.strip())
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a number") from error
    if not value.is_finite() or abs(value.adjusted()) > 400:
        raise ValueError(f"{text!r} is not a number within limits")
    canonical = format(value.normalize(), "f")
    return "0" if canonical == "-0" else canonical


def date(text: str) -> str:
    """Return a DA as YYYYMMDD. Raises ValueError if it is invalid."""
    match = READ_DATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a date YYYYMMDD")
    datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC)
    return match[1] + match[2] + match[3]


def time(text: str, *, latest: bool = False) -> str:
    """Return a TM as HHMMSS.FFFFFF, missing parts as their lowest (`latest`: highest) value. Raises ValueError."""
    match = READ_TIME.fullmatch(text.strip())
    if match is None or int(match[1]) > 23 or int(match[2] or 0) > 59 or int(match[3] or 0) > 60:
        raise ValueError(f"{text!r} is not a time HHMMSS.FFFFFF")
    rest, fraction = ("59", "9") if latest else ("00", "0")
    return f"{match[1]}{match[2] or rest}{match[3] or rest}.{(match[4] or '.')[1:].ljust(6, fraction)}"


def date_time(text: str, *, latest: bool = False) -> str:
    """Return a DT in UTC as YYYYMMDDHHMMSS.FFFFFF, missing parts as in `time`; without offset it is taken as UTC. Raises ValueError."""
    match = READ_DATE_TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a date and time YYYYMMDDHHMMSS.FFFFFF&ZZXX")
    year, month = int(match[1]), int(match[2] or (12 if latest else 1))
    day = int(match[3]) if match[3] else (_last_day(year, month) if latest else 1)
    hour, minute, second = (int(match[i] or default) for i, default in ((4, 23 if latest else 0), (5, 59 * latest), (6, 59 * latest)))
    micro = int((match[7] or ".")[1:].ljust(6, "9" if latest else "0"))
    moment = datetime(year, month, day, hour, minute, min(second, 59), micro, tzinfo=_offset(match[8]))
    try:
        moment = moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} is beyond the calendar") from error
    return f"{moment.year:04d}{moment:%m%d%H%M%S}.{moment.microsecond:06d}"


def _last_day(year: int, month: int) -> int:
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC) if (year, month) != (9999, 12) else None
    return (following - timedelta(days=1)).day if following else 31


def _offset(text: str | None) -> timezone:
    """PS3.5 §6.2: -1200 to +1400."""
    if text is None:
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[3:])
    if int(text[3:]) > 59 or (minutes > 14 * 60 if text[0] == "+" else minutes > 12 * 60):
        raise ValueError(f"{text!r} is not an offset from UTC")
    return timezone(timedelta(minutes=minutes if text[0] == "+" else -minutes))


def cut(value: str) -> str:
    """Return a value, cut to the indexed length."""
    return value if len(value) <= MAXIMUM_CHARACTERS else value[:MAXIMUM_CHARACTERS] + CUT


def normalise(vr: str, text: str) -> str:
    """Return one value of a VR, normalised for comparison.

    Raises:
        ValueError: the value is invalid for the VR.
    """
    if len(text) > MAXIMUM_CHARACTERS and vr in SHORT_FORMS:
        raise ValueError(f"a value of {len(text)} characters is no {vr}")
    if vr in NUMBERS:
        return number(text)
    if vr == "PN":
        return cut(fold_name(text[:MAXIMUM_FOLDED_CHARACTERS]))
    if vr == "DA":
        return date(text)
    if vr == "TM":
        return time(text)
    if vr == "DT":
        return date_time(text)
    if vr == "AT":
        return text.strip().upper()
    return cut(text.strip(" \0"))


@lru_cache(16_384)
def _remembered(vr: str, text: str) -> str:
    """`normalise` for short values, cached: most are equal in every instance of a series."""
    return normalise(vr, text)


class _Known(NamedTuple):
    """Cached result of a root attribute: its terms, with items numbered after `before`, and its number of items."""

    element: Mapping[str, Any]
    terms: list[Term]
    before: int
    items: int


Memory = dict[str, _Known]
"""Cached results of `derive` for one data set, by path. Most are equal in the next data set of the same series."""


def derive(
    dataset: Mapping[str, Any], leave_out: frozenset[str] = frozenset(), *, with_texts: bool = False, memory: Memory | None = None
) -> Terms:
    """Return the terms of a data set in the DICOM JSON model.

    Args:
        leave_out: root tags that are indexed elsewhere.
        with_texts: LT, ST and UT too, as for workitems: issuers are named in UT.
        memory: cache of earlier data sets, derived with the same `leave_out` and `with_texts`; it is updated. It references elements of
            `dataset`, which must not be changed afterwards.
    """
    deriving = _Deriving(NOT_INDEXED - TEXTS if with_texts else NOT_INDEXED)
    if memory is None:
        deriving.dataset(dataset, "", 0, 0, leave_out | COMPUTED, 0)
    else:
        deriving.remembering(dataset, leave_out | COMPUTED, memory)
    return deriving.found


class _Deriving:
    """Collects the terms of one data set; `seen` has those of per-frame functional groups while it is inside them."""

    def __init__(self, not_indexed: frozenset[str]) -> None:
        self.found = Terms()
        self._not_indexed = not_indexed
        self._items = 0
        self._seen: set[tuple[str, str]] | None = None

    def remembering(self, dataset: Mapping[str, Any], leave_out: frozenset[str], memory: Memory) -> None:
        """Add the terms of a data set; those of unchanged elements come from `memory`."""
        derived = self.found.terms
        for tag, element in dataset.items():
            if tag in leave_out or not element.get("Value"):
                continue
            path = tag if tag[3] not in ODD else _private(dataset, tag)
            known = memory.get(path)
            if (
                known is not None
                and known.element == element
                and (known.before == self._items or not known.items)
                and len(derived) + len(known.terms) <= MAXIMUM_TERMS
            ):
                derived += known.terms
                self._items += known.items
                continue
            begin, before, left_out = len(derived), self._items, self.found.left_out.total()
            self._element(dataset, tag, element, path, "", 0, 0, 0)
            # Not cached: a combined date and time depends on two elements, and left-out values are counted each time.
            if tag not in DATE_TIME_PAIRS and self.found.left_out.total() == left_out:
                memory[path] = _Known(element, derived[begin:], before, self._items - before)

    def dataset(self, dataset: Mapping[str, Any], prefix: str, item: int, root: int, leave_out: frozenset[str], depth: int) -> None:
        """Add the terms of a data set or item; `prefix`, `item` and `root` are its position."""
        for tag, element in dataset.items():
            values = element.get("Value")
            if not values or tag in leave_out:
                continue
            path = prefix + (tag if tag[3] not in ODD else _private(dataset, tag))
            self._element(dataset, tag, element, path, prefix, item, root, depth)

    def _element(
        self, dataset: Mapping[str, Any], tag: str, element: Mapping[str, Any], path: str, prefix: str, item: int, root: int, depth: int
    ) -> None:
        """Add the terms of one element that has values."""
        vr, values = element["vr"], element["Value"]
        if vr == "SQ":
            if depth < MAXIMUM_DEPTH:
                self._sequence(tag, values, path + ".", root, depth)
        elif vr not in self._not_indexed:
            if len(values) == 1 and not isinstance(values[0], dict):
                if normal := self._normal(vr, values[0]):
                    self._add(path, normal, item, root)
            else:
                for value in self._values(vr, values):
                    self._add(path, value, item, root)
            if tag in DATE_TIME_PAIRS and (both := _combined(dataset, tag)):
                self._add(prefix + combined(tag), both, item, root)

    def _sequence(self, tag: str, items: list[Any], prefix: str, root: int, depth: int) -> None:
        outside = self._seen
        if tag == PER_FRAME_FUNCTIONAL_GROUPS and outside is None:
            self._seen = set()
        for item in items:
            self._items += 1
            self.dataset(item, prefix, self._items, root or self._items, COMPUTED, depth + 1)
        self._seen = outside

    def _add(self, path: str, value: str, item: int, root: int) -> None:
        if self._seen is not None:
            if (path, value) in self._seen:
                return
            self._seen.add((path, value))
            item = root = 0
        derived = self.found.terms
        if len(derived) >= MAXIMUM_TERMS:
            self.found.left_out["terms"] += 1
        else:
            derived.append(_TERM((path, value, item, root)))

    def _values(self, vr: str, values: list[Any]) -> Iterable[str]:
        """Return the distinct values of an attribute, normalised for comparison."""
        flat = (text for value in values for text in (value.values() if isinstance(value, dict) else (value,)))
        return dict.fromkeys(normal for text in flat if (normal := self._normal(vr, text)))

    def _normal(self, vr: str, value: object) -> str:
        """Return one value, normalised for comparison; "" if there is none."""
        if value is None:
            return ""
        text = str(value)
        try:
            if len(text) <= CACHED_CHARACTERS:
                return _remembered(vr, text)
            normal = normalise(vr, text)
        except ValueError:
            self.found.left_out["invalid"] += 1
            return ""
        if len(normal) > MAXIMUM_CHARACTERS and normal.endswith(CUT):
            self.found.left_out["characters"] += 1
        return normal


def _private(dataset: Mapping[str, Any], tag: str) -> str:
    """Return the path component of a private tag; one without creator is unchanged."""
    creator = f"{tag[:4]}00{tag[4:6]}"
    return term_component(tag, _first(dataset[creator]) if is_private_creator(creator) and creator in dataset else "")


def _combined(dataset: Mapping[str, Any], date_tag: str) -> str:
    try:
        return date(_first(dataset[date_tag])) + time(_first(dataset.get(DATE_TIME_PAIRS[date_tag], {})))
    except ValueError:
        return ""


def _first(element: Mapping[str, Any]) -> str:
    values = element.get("Value") or [""]
    return str(values[0] or "").strip()
