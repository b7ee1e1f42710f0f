"""Matching: normalises search parameters, so that a store needs five operations only.

Both index stores, the Studies search and the Worklist search use these. The gateway calls `parse_query` or `parse_workitem_query`;
the stores match `MatchKey`s against the terms of `gantry_standard.query.terms`.

Source: PS3.4 §C.2.2.2; PS3.18 §8.3.4.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from urllib.parse import quote, unquote

from gantry_standard import errors, workitems
from gantry_standard.dicom.pydicom_tables import tag_of
from gantry_standard.http.warning_texts import first_of
from gantry_standard.query import terms, wildcards
from gantry_standard.query.levels import Level
from gantry_standard.query.query_attributes import (
    DATE_TIME_PAIRS,
    ENTITY,
    Entity,
    is_multi_valued,
    is_private,
    is_private_creator,
    keyword_of,
    resolve,
    vr_of,
)

__all__ = [
    "Filter",
    "Level",
    "MatchKey",
    "Operation",
    "Query",
    "by_path",
    "group_keys",
    "matches",
    "parse_filter",
    "parse_query",
    "parse_workitem_query",
    "read_filter",
]


class Operation(Enum):
    """The operations that a store must support."""

    EQUAL = 1
    """Any of `values`."""
    PATTERN = 2
    """`values[0]`, with * and ?."""
    RANGE = 3
    """low <= value <= high as strings; an empty end is open."""
    ABSENT = 4
    """Zero-length or absent."""
    ALL = 5
    """All of `values`."""


@dataclass(frozen=True, slots=True)
class MatchKey:
    """One matching key, with values in indexed form.

    Attributes:
        path: tags from the root, 8 upper-case hex digits each. Keys under one sequence must match in the same item.
            A date and its time taken together are one tag, such as "00080020+00080030".
        private_creator: of the last tag, if it is private.
        level: of the attribute; None: that of the request.
    """

    path: tuple[str, ...]
    operation: Operation
    values: tuple[str, ...] = ()
    low: str = ""
    high: str = ""
    private_creator: str = ""
    level: Level | None = None

    @property
    def term_path(self) -> str:
        """The path of the terms to compare with."""
        return ".".join((*self.path[:-1], terms.term_component(self.path[-1], self.private_creator)))


@dataclass(frozen=True, slots=True)
class Query:
    """A search, ready for a store.

    Attributes:
        collection: key of the study or the non-patient resource in the path; "" where the path names none: every study. What is not
            in a study is found only where its collection is named.
        series_instance_uid: from the path of the resource; "" where it names none.
        include_fields: attribute paths as tags joined by "."; a private one is followed by ":" and its private creator.
        include_levels: levels above `level` whose default attributes are returned too.
        limit: maximum number of results, with the server's maximum applied. 0: no results are wanted.
        visible_studies: the studies that the caller may see; None: all.
    """

    level: Level
    collection: str = ""
    series_instance_uid: str = ""
    keys: tuple[MatchKey, ...] = ()
    include_fields: tuple[str, ...] = ()
    include_all: bool = False
    include_levels: tuple[Level, ...] = ()
    offset: int = 0
    limit: int = 1000
    fuzzy_matching: bool = False
    visible_studies: frozenset[str] | None = None


MAXIMUM_OFFSET = 100_000
MAXIMUM_RANGE_CHARACTERS = 128
"""Two DT of 26 characters, a hyphen, and padding. Each hyphen of a value is tried."""
FUZZY_WARNING = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
WILDCARDS = frozenset(["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"])
"""VRs that allow * and ?; LT, ST and UT are indexed for workitems only."""
EMPTY_VALUES = frozenset(["AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"])
MULTIPLE_VALUES = frozenset(["AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC"])
SPECIFIC_CHARACTER_SET = tag_of("SpecificCharacterSet")
TRANSACTION_UID = tag_of("TransactionUID")
UID = re.compile(r"[0-9.]{1,64}")
INTEGER = re.compile(r"[0-9]{1,18}")

Place = Callable[[tuple[str, ...]], tuple[bool, Level | None, str]]
"""Returns for a path whether it is matched at the resource, its level, and its name for the Warning if it is not."""


def group_keys(keys: Sequence[MatchKey]) -> list[tuple[MatchKey, ...]]:
    """Return the keys in groups that must match together.

    Keys whose paths begin with the same sequence form one group: those with the same parent path must match in the same item of that
    path, the others in the same item of the outermost sequence. Any other key is a group of its own.
    """
    groups: dict[object, list[MatchKey]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key.path[0] if len(key.path) > 1 else number, []).append(key)
    return [tuple(group) for group in groups.values()]


@dataclass(slots=True)
class _Parameters:
    """The parameters of a search, grouped by kind."""

    attributes: dict[tuple[str, ...], str] = field(default_factory=dict)
    creators: dict[str, str] = field(default_factory=dict)
    include_fields: list[str] = field(default_factory=list)
    include_all: bool = False
    named: dict[str, str] = field(default_factory=dict)
    not_indexed: frozenset[str] = terms.NOT_INDEXED
    ignored: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Names that have no effect, by what they are and why they have none."""

    def ignore(self, kind: str, name: str, reason: str) -> None:
        """Note that a parameter has no effect.

        Args:
            kind: `parameter`, `attribute` or `private attribute`.
            reason: what follows after "is" or "are".
        """
        self.ignored.setdefault((kind, reason), []).append(name)

    @property
    def warnings(self) -> list[str]:
        """Texts of Warning headers: one for each reason, however many names there are."""
        texts = [FUZZY_WARNING] if self.flag("fuzzymatching") else []
        for (kind, reason), names in self.ignored.items():
            if len(names) == 1:
                texts.append(f"The {kind} {first_of(names)} is {reason}. It has been ignored.")
            else:
                texts.append(f"The {kind}s {first_of(names)} are {reason}. They have been ignored.")
        return texts

    def flag(self, name: str) -> bool:
        value = self.named.get(name, "false")
        if value not in ("true", "false"):
            raise errors.BadRequest(f"{name} is {value!r}, expected true or false")
        return value == "true"

    def integer(self, name: str, default: int) -> int:
        value = self.named.get(name)
        if value is None:
            return default
        if not INTEGER.fullmatch(value):
            raise errors.BadRequest(f"{name} is {value!r}, expected a whole number from 0")
        return int(value)


FLAGS = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
NAMED = ("limit", "offset", *FLAGS)


def parse_query(level: Level, study_uid: str, series_uid: str, parameters: list[tuple[str, str]], maximum: int) -> tuple[Query, list[str]]:
    """Return a search of studies, series or instances, and the texts of its Warning headers (without "299 <service>: ").

    Args:
        study_uid, series_uid: from the path of the resource; "" if there is none.
        parameters: names and values, percent-decoded, in order. Unknown names are ignored.
        maximum: the server's maximum number of results.

    Raises:
        errors.BadRequest: a value, a path or a combination is wrong.
        errors.PayloadTooLarge: `offset` is above 100,000.

    Source: PS3.18 §8.3.4, §10.6.1.2.
    """
    grouped = _sorted(parameters)
    allowed = _allowed(level, study_uid, series_uid)

    def place(path: tuple[str, ...]) -> tuple[bool, Level | None, str]:
        tag = path[0]
        entity = ENTITY.get(tag, Entity.INSTANCE)
        if entity in allowed or tag not in ENTITY:
            return True, entity.level, ""
        return False, entity.level, keyword_of(tag)

    keys, included = _keys(grouped, place)
    _check_patterns(keys)
    query = Query(
        level=level,
        collection=study_uid,
        series_instance_uid=series_uid,
        keys=keys,
        include_fields=included,
        include_all=grouped.include_all,
        include_levels=tuple(other for other in _above(level) if not ((other is Level.STUDY and study_uid) or series_uid)),
        offset=_offset(grouped),
        limit=_limit(grouped, maximum),
    )
    return query, grouped.warnings


def parse_workitem_query(parameters: list[tuple[str, str]], maximum: int) -> tuple[Query, list[str]]:
    """Return a search of workitems, as `parse_query` does; its level is INSTANCE, its keys have no level, and LT, ST and UT are matched.

    Raises:
        errors.BadRequest: as in `parse_query`; also if Transaction UID is a key, because the server never returns it.

    Source: PS3.18 §11.9; PS3.4 Table CC.2.5-3.
    """
    query, warnings = _workitem_query(parameters, maximum)
    _check_patterns(query.keys)
    return query, warnings


def _check_patterns(keys: Iterable[MatchKey]) -> None:
    """Refuse values with wildcards that a store could need long for."""
    for key in keys:
        if key.operation is Operation.PATTERN:
            try:
                wildcards.check(key.values[0])
            except ValueError as error:
                raise errors.BadRequest(f"{keyword_of(key.path[-1])}: {error}") from error


def _workitem_query(parameters: list[tuple[str, str]], maximum: int) -> tuple[Query, list[str]]:
    grouped = _sorted(parameters)
    grouped.not_indexed = terms.NOT_INDEXED - terms.TEXTS
    if any(TRANSACTION_UID in path for path in grouped.attributes) or any(TRANSACTION_UID in path for path in grouped.include_fields):
        raise errors.BadRequest("TransactionUID (0008,1195) is neither a matching nor a return key")

    def place(path: tuple[str, ...]) -> tuple[bool, Level | None, str]:
        if workitems.is_matched(path):
            return True, None, ""
        return False, None, ".".join(map(keyword_of, path))

    keys, included = _keys(grouped, place)
    query = Query(
        level=Level.INSTANCE,
        keys=keys,
        include_fields=included,
        include_all=grouped.include_all,
        offset=_offset(grouped),
        limit=_limit(grouped, maximum),
    )
    return query, grouped.warnings


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter of a filtered worklist subscription.

    Attributes:
        text: normalised, so equal keys give equal texts; `read_filter` reads it.
        keys: what must match.
    """

    text: str
    keys: tuple[MatchKey, ...]


def parse_filter(parameters: list[tuple[str, str]]) -> Filter:
    """Return the filter in the query of a Subscribe request.

    The standard's form is `filter=attribute=value,attribute=value` with "=" and "," of the value percent-encoded; older clients send
    each pair as a parameter of its own. An entry without "=" continues the value before it, as in a list of UIDs. The flags
    emptyvaluematching and multiplevaluematching may be in either form; other parameters are ignored.

    Args:
        parameters: of the query, percent-decoded once, in order.

    Raises:
        errors.BadRequest: there is no filter, or a key cannot be matched; ignoring it would report unwanted workitems.

    Source: PS3.18 §11.10.1.2; PS3.4 §CC.2.3.3.
    """
    pairs: list[list[str]] = []
    for name, value in parameters:
        if name != "filter":
            # Ignoring an unknown keyword would report unwanted workitems.
            if name in FLAGS or _path(name) or name[:1].isupper():
                pairs.append([name, value])
            continue
        for piece in value.split(","):
            key, equals, given = (unquote(part) for part in piece.partition("="))
            if equals:
                pairs.append([key, given])
            elif pairs and piece:
                pairs[-1][1] += f",{key}"
            elif piece:
                pairs.append([key, ""])
    parsed = _filter([(name, value) for name, value in pairs])
    _check_patterns(parsed.keys)
    return parsed


def _filter(pairs: list[tuple[str, str]]) -> Filter:
    for name, _ in pairs:
        if name not in FLAGS and not _path(name):
            raise errors.BadRequest(f"the filter names {name[:64]!r}, expected a tag or a keyword")
    normal = sorted((name if name in FLAGS else ".".join(_path(name)), value) for name, value in pairs if value != "false")
    query, warnings = _workitem_query(normal, 1)
    if warnings:
        raise errors.BadRequest(f"the filter cannot be matched: {warnings[0]}")
    if not any(name not in FLAGS for name, _ in pairs):
        raise errors.BadRequest("a filtered worklist subscription needs a filter: filter=attribute=value,attribute=value")
    return Filter("&".join(f"{name}={quote(value, safe='')}" for name, value in normal), query.keys)


@lru_cache(4096)
def read_filter(text: str) -> Filter:
    """Return the filter of a normalised text.

    Raises:
        errors.BadRequest: it is none.
    """
    pieces = (piece.partition("=") for piece in text.split("&"))
    return _filter([(name, unquote(value)) for name, _, value in pieces])


def by_path(index_terms: Iterable[terms.Term]) -> dict[str, list[terms.Term]]:
    """Return the terms of one data set by path, as `matches` needs them."""
    sorted_terms: dict[str, list[terms.Term]] = defaultdict(list)
    for term in index_terms:
        sorted_terms[term.path].append(term)
    return dict(sorted_terms)


def matches(keys: Sequence[MatchKey], terms_by_path: Mapping[str, list[terms.Term]]) -> bool:
    """Return whether a data set matches all keys, by the rules of the index stores.

    Args:
        terms_by_path: its terms, by `by_path`.
    """
    return all(_group_matches(group, terms_by_path) for group in group_keys(keys))


def _group_matches(group: Sequence[MatchKey], terms_by_path: Mapping[str, list[terms.Term]]) -> bool:
    if any(key.operation is Operation.ABSENT and terms_by_path.get(key.term_path) for key in group):
        return False
    wanted = [key for key in group if key.operation is not Operation.ABSENT]
    is_same_path = len({key.path[:-1] for key in wanted}) == 1
    common: set[int] | None = None
    for key in wanted:
        for is_match in _comparisons(key):
            items = {term.item if is_same_path else term.root for term in terms_by_path.get(key.term_path, ()) if is_match(term.value)}
            if len(key.path) == 1:
                # Root attributes are not in an item: each key may match another value.
                items = {0} if items else set()
            common = items if common is None else common & items
            if not common:
                return False
    return True


def _comparisons(key: MatchKey) -> list[Callable[[str], bool]]:
    if key.operation is Operation.EQUAL:
        return [frozenset(key.values).__contains__]
    if key.operation is Operation.ALL:
        return [frozenset([value]).__contains__ for value in key.values]
    if key.operation is Operation.PATTERN:
        return [wildcards.compiled(key.values[0]).matches]
    return [lambda value: value >= key.low and (not key.high or value <= key.high)]


def _allowed(level: Level, study_uid: str, series_uid: str) -> set[Entity]:
    """PS3.18 §10.6.1.2.1: which entities' attributes are matched at a resource."""
    allowed = {Entity.PATIENT, Entity(level.value)}
    if not study_uid:
        allowed |= {Entity(other.value) for other in _above(level)}
    elif level is Level.INSTANCE and not series_uid:
        allowed.add(Entity.SERIES)
    return allowed


def _above(level: Level) -> tuple[Level, ...]:
    return tuple(other for other in Level if other.value < level.value)


def _offset(parameters: _Parameters) -> int:
    offset = parameters.integer("offset", 0)
    if offset > MAXIMUM_OFFSET:
        raise errors.PayloadTooLarge(f"offset is {offset}, at most {MAXIMUM_OFFSET} is possible: make the search narrower")
    return offset


def _limit(parameters: _Parameters, maximum: int) -> int:
    return min(parameters.integer("limit", maximum), maximum)


def _sorted(parameters: list[tuple[str, str]]) -> _Parameters:
    grouped = _Parameters()
    for name, value in parameters:
        if name == "includefield":
            _add_include_fields(grouped, value)
        elif name in NAMED:
            if name in grouped.named:
                raise errors.BadRequest(f"{name} is given more than once")
            grouped.named[name] = value
        elif path := _path(name):
            if path in grouped.attributes:
                raise errors.BadRequest(f"attribute {name} is given more than once")
            grouped.attributes[path] = value
        elif name[:1].isupper():
            grouped.ignore("parameter", name, "not known")
    if grouped.include_all and grouped.include_fields:
        raise errors.BadRequest("includefield=all stands alone")
    for name in FLAGS:
        grouped.flag(name)
    return grouped


def _add_include_fields(parameters: _Parameters, value: str) -> None:
    for part in value.split(","):
        name = part.strip()
        if name == "all":
            parameters.include_all = True
        elif path := _path(name):
            parameters.include_fields.append(".".join(path))
        else:
            raise errors.BadRequest(f"includefield has {name[:64]!r}, expected tags or keywords, or all")


def _path(name: str) -> tuple[str, ...]:
    """Return a path as tags; () if the name is not an attribute."""
    names = name.split(".")
    tags = tuple(resolve(part) for part in names)
    if not tags[0]:
        return ()
    if "" in tags:
        raise errors.BadRequest(f"attribute path {name[:128]!r}: {names[tags.index('')]!r} is neither a tag nor a keyword")
    for tag, part in zip(tags[:-1], names, strict=False):
        if vr_of(tag) != "SQ" and not is_private(tag):
            raise errors.BadRequest(f"attribute path {name[:128]!r}: {part} is no sequence")
    return tags


def _keys(parameters: _Parameters, place: Place) -> tuple[tuple[MatchKey, ...], tuple[str, ...]]:
    creators = {path[-1]: value for path, value in parameters.attributes.items() if is_private_creator(path[-1]) and value}
    keys: list[MatchKey] = []
    included: dict[str, None] = {_with_creator(path, creators): None for path in parameters.include_fields}
    for path, value in parameters.attributes.items():
        if path[-1] == SPECIFIC_CHARACTER_SET or (is_private_creator(path[-1]) and value):
            continue
        creator = creators.get(f"{path[-1][:4]}00{path[-1][4:6]}", "") if is_private(path[-1]) else ""
        included[_with_creator(".".join(path), creators)] = None
        if (key := _key(path, value, creator, parameters)) is None:
            continue
        matched, level, name = place(path)
        if not matched:
            parameters.ignore("attribute", name, "not matched at this resource")
            continue
        keys.append(MatchKey(key.path, key.operation, key.values, key.low, key.high, creator, level=level))
    combined = tuple(_with_combined(keys))
    for key in combined:
        # Only here: combined with its date, a time range may end on a later day at an earlier hour.
        if key.operation is Operation.RANGE and key.low and key.high and key.low > key.high:
            raise errors.BadRequest(f"{keyword_of(key.path[-1][:8])}: the range ends before it begins")
    return combined, tuple(included)


def _with_creator(path: str, creators: dict[str, str]) -> str:
    """Return a path, and the private creator of its last tag if the search names it (PS3.18 §8.3.4.1)."""
    tag = path[-8:]
    creator = creators.get(f"{tag[:4]}00{tag[4:6]}", "") if is_private(tag) else ""
    return f"{path}:{creator}" if creator else path


def _key(path: tuple[str, ...], value: str, creator: str, parameters: _Parameters) -> MatchKey | None:
    """Return the key of one attribute; None for universal matching."""
    vr = vr_of(path[-1])
    name = keyword_of(path[-1])
    if value == "":
        return None
    if vr == "SQ":
        raise errors.BadRequest(f"{name} is a sequence: give values for attributes of its items")
    if is_private(path[-1]):
        return _private_key(path, value, creator, parameters)
    is_indexed = vr not in parameters.not_indexed
    if value == '""' and vr in EMPTY_VALUES and is_indexed and parameters.flag("emptyvaluematching"):
        return MatchKey(path, Operation.ABSENT)
    if not is_indexed:
        parameters.ignore("attribute", name, "not supported for matching")
        return None
    try:
        if vr in ("DA", "TM", "DT"):
            return _moment_key(path, vr, value)
        if vr == "UI":
            return MatchKey(path, Operation.EQUAL, _uids(value))
        return _text_key(path, vr, value, parameters)
    except ValueError as error:
        raise errors.BadRequest(f"{name}: no value of VR {vr}") from error


def _private_key(path: tuple[str, ...], value: str, creator: str, parameters: _Parameters) -> MatchKey | None:
    if not creator:
        parameters.ignore("private attribute", path[-1], "given without its private creator")
        return None
    if set(value) & set("*?"):
        return MatchKey(path, Operation.PATTERN, (value,))
    values = {value: None, terms.fold_name(value): None}
    with suppress(ValueError):
        values[terms.number(value)] = None
    return MatchKey(path, Operation.EQUAL, tuple(values))


def _text_key(path: tuple[str, ...], vr: str, value: str, parameters: _Parameters) -> MatchKey | None:
    if vr in MULTIPLE_VALUES and is_multi_valued(path[-1]) and parameters.flag("multiplevaluematching"):
        values = tuple(terms.normalise(vr, part) for part in re.split(r"[\\,]", value) if part.strip())
        if len(values) > 1:
            return MatchKey(path, Operation.ALL, values)
    if vr == "PN":
        value = next((group for group in value.split("=") if group.strip(" ^")), "*")
    if vr in WILDCARDS and set(value) & set("*?"):
        pattern = re.sub(r"\*+", "*", terms.fold_name(value) if vr == "PN" else value.strip())
        return None if pattern == "*" else MatchKey(path, Operation.PATTERN, (pattern,))
    return MatchKey(path, Operation.EQUAL, (terms.normalise(vr, value),))


def _uids(value: str) -> tuple[str, ...]:
    """PS3.4 §C.2.2.2.2; in URIs the separator is a comma."""
    uids = tuple(dict.fromkeys(part.strip() for part in re.split(r"[\\,]", value)))
    if not all(UID.fullmatch(uid) for uid in uids):
        raise ValueError("not a list of UIDs")
    return uids


def _moment_key(path: tuple[str, ...], vr: str, value: str) -> MatchKey:
    if vr == "DA":
        low, high, is_range = _range(value, terms.date, terms.date)
    elif vr == "TM":
        low, high, is_range = _range(value, terms.time, lambda text: terms.time(text, latest=True))
    else:
        low, high, is_range = _range(value, terms.date_time, lambda text: terms.date_time(text, latest=True))
    if not is_range:
        return MatchKey(path, Operation.EQUAL, (low,))
    return MatchKey(path, Operation.RANGE, low=low, high=high)


def _range(value: str, earliest: Callable[[str], str], latest: Callable[[str], str]) -> tuple[str, str, bool]:
    """Split at the hyphen that makes both sides valid; a DT with a negative offset is one value (PS3.4 §C.2.2.2.5)."""
    if len(value) > MAXIMUM_RANGE_CHARACTERS:
        raise ValueError(f"{len(value)} characters are no range")
    try:
        return earliest(value), "", False
    except ValueError:
        pass
    for position in (number for number, character in enumerate(value) if character == "-"):
        left, right = value[:position], value[position + 1 :]
        try:
            if left or right:
                return earliest(left) if left else "", latest(right) if right else "", True
        except ValueError:
            continue
    raise ValueError("neither a value nor a range")


def _with_combined(keys: list[MatchKey]) -> list[MatchKey]:
    """Join the ranges of a date and of its time to one range (PS3.18 §8.3.4.1.1)."""
    by_path = {key.path: key for key in keys if key.operation is Operation.RANGE}
    for date_path, key in list(by_path.items()):
        time_tag = DATE_TIME_PAIRS.get(date_path[-1])
        clock = by_path.get((*date_path[:-1], time_tag)) if time_tag else None
        if clock is None:
            continue
        joined = MatchKey(
            (*date_path[:-1], terms.combined(date_path[-1])),
            Operation.RANGE,
            low=key.low + (clock.low or "000000.000000") if key.low else "",
            high=key.high + (clock.high or "235959.999999") if key.high else "",
            level=key.level,
        )
        keys = [other for other in keys if other is not key and other is not clock] + [joined]
    return keys
