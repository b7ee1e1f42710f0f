"""Coercion: rules of the operator that change attributes when an instance is stored. Without a rule file nothing is changed.

    [[rule]]
    name = "patients of the north site"

    [rule.match]                          # all must match; regular expressions for the whole value, "" if it is absent
    InstitutionName = "North.*"

    [[rule.action]]
    attribute = "IssuerOfPatientID"
    set = "NORTH"
    when = "empty"                        # always (default), absent, or empty: absent or without a value

    [[rule.action]]
    attribute = "PatientID"
    prefix = "N-"                         # or strip_prefix = "…"; or pattern = "…" and replacement = "…", as re.sub has them

Rules apply in order, each to the result of the one before. The uploaded file stays unchanged. Clients, metadata and search see the changed
data set, whose Original Attributes Sequence (0400,0561) holds the previous values.

A value that a rule produces must be valid for its VR and encodable in the character set of the instance. If it is not, the instance is
refused (0110H), because a partly coerced instance would be wrong. To add a kind of action, add a row to ACTIONS.

Source: PS3.18 §10.5.2; PS3.3 §C.12.1 (Original Attributes Sequence).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gantry_runtime import rule_file
from gantry_standard import reasons
from gantry_standard.dicom.charsets import character_set
from gantry_standard.dicom.elements import Element, Elements
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.pydicom_tables import KEYWORDS, attribute, tag_of
from gantry_standard.dicom.value_forms import has_form
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind
from gantry_standard.dicom.values import SPECIFIC_CHARACTER_SET

ORIGINAL_ATTRIBUTES_SEQUENCE = 0x04000561
MODIFIED_ATTRIBUTES_SEQUENCE = 0x04000550
ATTRIBUTE_MODIFICATION_DATETIME = 0x04000562
MODIFYING_SYSTEM = 0x04000563
SOURCE_OF_PREVIOUS_VALUES = 0x04000564
REASON_FOR_THE_ATTRIBUTE_MODIFICATION = 0x04000565

LONGEST_VALUE = 4096
"""Longest value in bytes that rules consider. A longer value does not match and is not changed, so that no expression runs for long."""

CHANGEABLE = frozenset((b"AE", b"AS", b"CS", b"DA", b"DS", b"DT", b"IS", b"LO", b"LT", b"PN", b"SH", b"ST", b"TM"))
"""VRs of the attributes that rules may change."""

UNTOUCHABLE = frozenset(
    (
        0x00080005,  # Specific Character Set: defines the encoding of all other text
        0x00080008,  # Image Type: describes the pixel data
        0x00080060,  # Modality: depends on the SOP class
    )
)
UNTOUCHABLE_GROUPS = frozenset((0x0002, 0x0028, 0x0400, 0x7FE0))
"""File meta, pixel description, signatures and Original Attributes, pixel data. UIDs are excluded by their VR."""


@dataclass(frozen=True, slots=True)
class Match:
    """One condition: `pattern` must match the whole value of an attribute."""

    tag: int
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Action:
    """One change. `change` returns the new text for the old one; None stands for an absent attribute."""

    tag: int
    vr: bytes
    keyword: str
    change: Callable[[str | None], str | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """Actions that are applied if all conditions hold."""

    name: str
    matches: tuple[Match, ...]
    actions: tuple[Action, ...]


def _set(arguments: Mapping[str, str]) -> Callable[[str | None], str | None]:
    value, when = arguments["set"], arguments.get("when", "always")

    def change(old: str | None) -> str | None:
        applies = when == "always" or old is None or (when == "empty" and not old)
        return value if applies else old

    return change


def _prefix(arguments: Mapping[str, str]) -> Callable[[str | None], str | None]:
    prefix = arguments["prefix"]
    return lambda old: prefix + old if old and not old.startswith(prefix) else old


def _strip_prefix(arguments: Mapping[str, str]) -> Callable[[str | None], str | None]:
    prefix = arguments["strip_prefix"]
    return lambda old: old.removeprefix(prefix) if old else old


def _replace(arguments: Mapping[str, str]) -> Callable[[str | None], str | None]:
    pattern, replacement = re.compile(arguments["pattern"]), arguments["replacement"]
    pattern.sub(replacement, "")  # raises now, not at the first instance, if the replacement refers to a group that does not exist
    return lambda old: pattern.sub(replacement, old) if old else old


ACTIONS: dict[frozenset[str], tuple[frozenset[str], Callable[[Mapping[str, str]], Callable[[str | None], str | None]]]] = {
    frozenset(("set",)): (frozenset(("when",)), _set),
    frozenset(("prefix",)): (frozenset(), _prefix),
    frozenset(("strip_prefix",)): (frozenset(), _strip_prefix),
    frozenset(("pattern", "replacement")): (frozenset(), _replace),
}
"""From the required fields of an action to its optional fields and the function that creates `Action.change`."""


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Read a rule file.

    Raises:
        ValueError: the file cannot be read, or rules are invalid; the message has one line per problem.
    """
    rules, problems = rule_file.load(path, _rule)
    rule_file.refuse(path, problems)
    return rules


def _rule(where: str, entry: Mapping[str, Any], problems: list[str]) -> Rule:
    name, conditions, actions = entry.get("name", where), entry.get("match", {}), entry.get("action", [])
    if unknown := sorted(entry.keys() - {"name", "match", "action"}):
        problems.append(f"{where}: {', '.join(unknown)}: expected name, match and action only")
    if not isinstance(name, str):
        problems.append(f"{where}: name: expected a text")
    if not isinstance(conditions, dict):
        problems.append(f"{where}: match: expected [rule.match]")
        conditions = {}
    if not isinstance(actions, list) or not actions or not all(isinstance(action, dict) for action in actions):
        problems.append(f"{where}: expected at least one [[rule.action]]")
        actions = []
    matches = [_match(where, keyword, pattern, problems) for keyword, pattern in conditions.items()]
    parsed_actions = [_action(f"{where}, action {number}", action, problems) for number, action in enumerate(actions, 1)]
    return Rule(str(name), tuple(filter(None, matches)), tuple(filter(None, parsed_actions)))


def _tag_and_vr(keyword: str) -> tuple[int, bytes]:
    """Return the tag and VR of a keyword; (0, b"") if there is no such keyword."""
    tag = int(tag_of(keyword), 16) if keyword in KEYWORDS else 0
    row = attribute(tag) if tag else None
    return (tag, b"") if row is None else (tag, row.vr.encode("ascii"))


def _match(where: str, keyword: str, pattern: object, problems: list[str]) -> Match | None:
    tag, vr = _tag_and_vr(keyword)
    if vr not in CHANGEABLE and vr != b"UI":
        problems.append(f"{where}: match {keyword}: expected the keyword of an attribute that holds text")
        return None
    if not isinstance(pattern, str):
        problems.append(f"{where}: match {keyword}: expected a regular expression")
        return None
    try:
        return Match(tag, re.compile(pattern, re.DOTALL))
    except re.error as error:
        problems.append(f"{where}: match {keyword}: {error}")
        return None


def _action(where: str, entry: Mapping[str, object], problems: list[str]) -> Action | None:
    keyword = str(entry.get("attribute", ""))
    tag, vr = _tag_and_vr(keyword)
    if vr not in CHANGEABLE or tag in UNTOUCHABLE or tag >> 16 in UNTOUCHABLE_GROUPS:
        problems.append(
            f"{where}: attribute {keyword!r}: expected a keyword that rules may change (text; no UID, nothing that describes pixels)"
        )
        return None
    arguments = {name: value for name, value in entry.items() if name != "attribute" and isinstance(value, str)}
    kind = next((row for names, row in ACTIONS.items() if names <= arguments.keys() <= names | row[0]), None)
    if kind is None or len(arguments) != len(entry) - 1:
        problems.append(f"{where}: expected one of set (with when), prefix, strip_prefix, pattern with replacement, each a text")
        return None
    if arguments.get("when", "always") not in ("always", "absent", "empty"):
        problems.append(f"{where}: when: expected always, absent or empty")
    added = [arguments[name] for name in ("set", "prefix", "replacement") if name in arguments]
    if not all(text.isascii() and text.isprintable() for text in added):
        problems.append(f"{where}: expected printable ASCII text, which every character set can encode")
    if "set" in arguments and not _is_legal(vr, arguments["set"]):
        problems.append(f"{where}: set: expected a value of VR {vr.decode()}")
    try:
        return Action(tag, vr, keyword, kind[1](arguments))
    except (re.error, IndexError) as error:
        problems.append(f"{where}: pattern and replacement: {error}")
        return None


def _is_legal(vr: bytes, text: str) -> bool:
    values = [text] if VALUE_REPRESENTATIONS[vr].kind is Kind.LONG_TEXT else text.split("\\")
    return all(has_form(vr.decode("ascii"), value) for value in values)


@dataclass(frozen=True, slots=True)
class Coercion:
    """Applies rules to data sets.

    Attributes:
        rules: in the order in which they are applied.
        modifying_system: value of Modifying System (0400,0563).
    """

    rules: tuple[Rule, ...]
    modifying_system: str

    def __call__(self, root: Elements) -> Elements | None:
        """Change a data set in place.

        Returns:
            The item that was added to Original Attributes Sequence; None if no rule changed anything.

        Raises:
            ScanFailure: a new value is invalid or cannot be encoded, or the existing sequence is invalid.
        """
        previous: Elements = {}
        for rule in self.rules:
            if all(_holds(root, match) for match in rule.matches):
                for action in rule.actions:
                    _act(root, rule, action, previous)
        changed = {tag: element for tag, element in previous.items() if _differs(root, tag, element)}
        if not changed:
            return None
        item = self._item(changed)
        existing = root.get(ORIGINAL_ATTRIBUTES_SEQUENCE)
        items = existing[1] if existing is not None else []
        if not isinstance(items, list):
            raise ScanFailure("Original Attributes Sequence is not a sequence, so no item can be added", reasons.PROCESSING_FAILURE)
        root[ORIGINAL_ATTRIBUTES_SEQUENCE] = (b"SQ", [*items, item], 0)
        return item

    def _item(self, previous: Elements) -> Elements:
        now = datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000").encode("ascii")
        return {
            MODIFIED_ATTRIBUTES_SEQUENCE: (b"SQ", [previous], 0),
            ATTRIBUTE_MODIFICATION_DATETIME: (b"DT", now, 0),
            MODIFYING_SYSTEM: (b"LO", self.modifying_system.encode("ascii"), 0),
            SOURCE_OF_PREVIOUS_VALUES: (b"LO", b"", 0),
            REASON_FOR_THE_ATTRIBUTE_MODIFICATION: (b"CS", b"COERCE", 0),
        }


def _differs(root: Elements, tag: int, previous: Element) -> bool:
    """Return whether more than padding changed. `previous` has an empty value if the attribute was absent."""
    now = root[tag][1]
    return isinstance(now, bytes) and isinstance(previous[1], bytes) and now.strip(b" \0") != previous[1].strip(b" \0")


def _holds(root: Elements, match: Match) -> bool:
    element = root.get(match.tag)
    if element is None:
        return match.pattern.fullmatch("") is not None
    text = _text(root, element)
    return text is not None and match.pattern.fullmatch(text) is not None


def _text(root: Elements, element: Element) -> str | None:
    """Return a value as text without padding; None if it is not text or too long."""
    vr, value, _ = element
    if not isinstance(value, bytes) or len(value) > LONGEST_VALUE or (vr not in CHANGEABLE and vr != b"UI"):
        return None
    is_ascii = VALUE_REPRESENTATIONS[vr].kind is Kind.ASCII
    return (value.decode("latin-1") if is_ascii else character_set(_charset(root)).decode(value)).strip(" \0")


def _charset(root: Elements) -> bytes:
    element = root.get(SPECIFIC_CHARACTER_SET)
    return element[1] if element is not None and isinstance(element[1], bytes) else b""


def _act(root: Elements, rule: Rule, action: Action, previous: Elements) -> None:
    element = root.get(action.tag)
    old = _text(root, element) if element is not None else None
    if element is not None and old is None:
        return
    new = action.change(old)
    if new is None or new == (old or ""):
        return
    if not _is_legal(action.vr, new):
        raise ScanFailure(
            f"coercion {rule.name}: the new {action.keyword} is not valid for VR {action.vr.decode()}", reasons.PROCESSING_FAILURE
        )
    previous.setdefault(action.tag, element if element is not None else (action.vr, b"", 0))
    root[action.tag] = (action.vr, _encoded(root, rule, action, new), 0)


def _encoded(root: Elements, rule: Rule, action: Action, text: str) -> bytes:
    if text.isascii():
        return text.encode("ascii")
    charset = character_set(_charset(root))
    try:
        value = text.encode(charset.codec)
    except UnicodeEncodeError:
        value = b""
    if not _charset(root).strip(b" \0") or charset.decode(value) != text:
        raise ScanFailure(
            f"coercion {rule.name}: the new {action.keyword} cannot be encoded in the character set of the instance",
            reasons.PROCESSING_FAILURE,
        )
    return value
