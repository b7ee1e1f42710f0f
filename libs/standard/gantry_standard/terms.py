"""Terms: what of a data set can be matched, in the form in which it is compared.

A term is a path, a value and the item it stands in. Values are normalised per VR so that equality is string equality and a range is a
range of strings: PN folded (no case, no accents), numbers as canonical decimals, DA, TM and DT padded, DT in UTC.

Not indexed: OB OD OF OL OV OW UN LT ST UT. Values are cut at 1,024 characters; of the Per-Frame Functional Groups distinct values are
kept without the identity of their items; a data set has at most 20,000 terms.

Source: PS3.4 §C.2.2.2; PS3.18 §8.3.4.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from gantry_standard.query_attributes import COMPUTED, DATE_TIME_PAIRS, is_private, is_private_creator

NOT_INDEXED = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN", "LT", "ST", "UT"])
NUMBERS = frozenset(["DS", "IS", "FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"])
MAXIMUM_CHARACTERS = 1024
MAXIMUM_TERMS = 20_000
MAXIMUM_DEPTH = 64
CUT = "\x1e"
"""Ends a value that was cut."""
PER_FRAME_FUNCTIONAL_GROUPS = "52009230"


@dataclass(frozen=True, slots=True)
class Term:
    """One value that can be matched.

    Attributes:
        path: tags from the root joined by "."; private tags as `term_component` gives them.
        item: number of the item that holds it, unique in the data set; 0: the root, or no identity.
        root: number of the item of the outermost sequence in which it stands; 0 as above.
    """

    path: str
    value: str
    item: int = 0
    root: int = 0


@dataclass(slots=True)
class Terms:
    """The terms of one data set, and how many values each limit left out."""

    terms: list[Term] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def term_component(tag: str, private_creator: str = "") -> str:
    """Return how a tag stands in a path: private ones by creator, whatever their block (PS3.5 §7.8.1)."""
    return f"{tag[:4]}xx{tag[6:]}:{private_creator}" if private_creator else tag


def combined(date_tag: str) -> str:
    """Return the path of a date and its time taken together."""
    return f"{date_tag}+{DATE_TIME_PAIRS[date_tag]}"


@lru_cache(4096)
def fold_name(text: str) -> str:
    """Return a component group of a PN for comparison: without case, accents, and trailing delimiters."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return re.sub(r"\s*\^\s*", "^", bare).strip().rstrip("^")


def number(text: str) -> str:
    """Return a number as its canonical decimal.

    Raises:
        ValueError: it is no number, or its exponent is beyond 400.
    """
    try:
        value = Decimal(text.strip())
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a number") from error
    if not value.is_finite() or abs(value.adjusted()) > 400:
        raise ValueError(f"{text!r} is not a number within limits")
    canonical = format(value.normalize(), "f")
    return "0" if canonical == "-0" else canonical


DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
TIME = re.compile(r"(\d\d):?(?:(\d\d):?(?:(\d\d)(\.\d{1,6})?)?)?")
DATE_TIME = re.compile(r"(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(\.\d{1,6})?)?)?)?)?)?([+-]\d{4})?")


def date(text: str) -> str:
    """Return a DA as YYYYMMDD. Raises ValueError when it is none."""
    found = DATE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a date YYYYMMDD")
    datetime(int(found[1]), int(found[2]), int(found[3]), tzinfo=UTC)
    return found[1] + found[2] + found[3]


def time(text: str, *, latest: bool = False) -> str:
    """Return a TM as HHMMSS.FFFFFF, missing parts at their least (or `latest`: greatest) value. Raises ValueError."""
    found = TIME.fullmatch(text.strip())
    if found is None or int(found[1]) > 23 or int(found[2] or 0) > 59 or int(found[3] or 0) > 60:
        raise ValueError(f"{text!r} is not a time HHMMSS.FFFFFF")
    rest, fraction = ("59", "9") if latest else ("00", "0")
    return f"{found[1]}{found[2] or rest}{found[3] or rest}.{(found[4] or '.')[1:].ljust(6, fraction)}"


def date_time(text: str, *, latest: bool = False) -> str:
    """Return a DT in UTC as YYYYMMDDHHMMSS.FFFFFF, missing parts as in `time`; without offset it is taken as UTC. Raises ValueError."""
    found = DATE_TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a date and time YYYYMMDDHHMMSS.FFFFFF&ZZXX")
    year, month = int(found[1]), int(found[2] or (12 if latest else 1))
    day = int(found[3]) if found[3] else (_last_day(year, month) if latest else 1)
    hour, minute, second = (int(found[i] or default) for i, default in ((4, 23 if latest else 0), (5, 59 * latest), (6, 59 * latest)))
    micro = int((found[7] or ".")[1:].ljust(6, "9" if latest else "0"))
    moment = datetime(year, month, day, hour, minute, min(second, 59), micro, tzinfo=_offset(found[8]))
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
    """Return a value in the length in which it is indexed."""
    return value if len(value) <= MAXIMUM_CHARACTERS else value[:MAXIMUM_CHARACTERS] + CUT


def normalise(vr: str, text: str) -> str:
    """Return one value of a VR as it is compared.

    Raises:
        ValueError: it is no value of that VR.
    """
    if vr in NUMBERS:
        return number(text)
    if vr == "PN":
        return cut(fold_name(text))
    if vr == "DA":
        return date(text)
    if vr == "TM":
        return time(text)
    if vr == "DT":
        return date_time(text)
    if vr == "AT":
        return text.strip().upper()
    return cut(text.strip(" \0"))


def derive(dataset: Mapping[str, Any], leave_out: frozenset[str] = frozenset()) -> Terms:
    """Return the terms of a data set in the DICOM JSON model.

    Args:
        leave_out: tags at the root that are indexed elsewhere.
    """
    found = Terms()
    numbers = iter(range(1, 1 << 62))
    for term in _of_dataset(dataset, "", 0, 0, numbers, found, leave_out, 0):
        if len(found.terms) >= MAXIMUM_TERMS:
            found.left_out["terms"] += 1
        else:
            found.terms.append(term)
    return found


def _of_dataset(
    dataset: Mapping[str, Any],
    prefix: str,
    item: int,
    root: int,
    numbers: Iterator[int],
    found: Terms,
    leave_out: frozenset[str],
    depth: int,
) -> Iterator[Term]:
    creators = {tag: _first(dataset[tag]) for tag in dataset if is_private_creator(tag)}
    for tag, element in dataset.items():
        if tag in leave_out or tag in COMPUTED:
            continue
        component = tag
        if is_private(tag):
            component = term_component(tag, creators.get(f"{tag[:4]}00{tag[4:6]}", ""))
        values = element.get("Value")
        if not values:
            continue
        vr = element["vr"]
        if vr == "SQ":
            if depth < MAXIMUM_DEPTH:
                yield from _of_sequence(tag, values, f"{prefix}{component}.", root, numbers, found, depth)
        elif vr not in NOT_INDEXED:
            for value in dict.fromkeys(_values(vr, values, found)):
                yield Term(prefix + component, value, item, root)
            if tag in DATE_TIME_PAIRS and (both := _combined(dataset, tag)):
                yield Term(prefix + combined(tag), both, item, root)


def _of_sequence(tag: str, items: list[Any], prefix: str, root: int, numbers: Iterator[int], found: Terms, depth: int) -> Iterator[Term]:
    if tag == PER_FRAME_FUNCTIONAL_GROUPS:
        seen: set[tuple[str, str]] = set()
        for item in items:
            for term in _of_dataset(item, prefix, 0, 0, numbers, found, frozenset(), depth + 1):
                if (term.path, term.value) not in seen:
                    seen.add((term.path, term.value))
                    yield Term(term.path, term.value)
        return
    for item in items:
        own = next(numbers)
        yield from _of_dataset(item, prefix, own, root or own, numbers, found, frozenset(), depth + 1)


def _values(vr: str, values: list[Any], found: Terms) -> Iterator[str]:
    for value in values:
        texts = value.values() if isinstance(value, dict) else () if value is None else (value,)
        for text in texts:
            try:
                normal = normalise(vr, str(text))
            except ValueError:
                found.left_out["invalid"] += 1
                continue
            if normal.endswith(CUT):
                found.left_out["characters"] += 1
            if normal:
                yield normal


def _combined(dataset: Mapping[str, Any], date_tag: str) -> str:
    try:
        return date(_first(dataset[date_tag])) + time(_first(dataset.get(DATE_TIME_PAIRS[date_tag], {})))
    except ValueError:
        return ""


def _first(element: Mapping[str, Any]) -> str:
    values = element.get("Value") or [""]
    return str(values[0] or "").strip()
