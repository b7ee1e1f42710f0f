"""Rules that make workitems of what arrives: which studies, series or instances, and from which template. Without a file there are none.

    [[rule]]
    name = "liver segmentation"           # of its own: with what matched it makes the UID of the workitem
    level = "series"                      # one workitem for each study (default), series or instance that matches
    template = "liver.json"               # DICOM JSON, or XML (.xml: Native DICOM Model); beside this file

    [rule.match]                          # all must hold in one instance; a regular expression against the whole value, "" where
    Modality = "CT"                       # there is none; several values are joined by a backslash
    SeriesDescription = "(?i).*portal.*"
    "RequestAttributesSequence.RequestedProcedureID" = "L-.*"       # of any item

A template is the data set of the workitem. Its text may hold placeholders, which the first instance that matches fills in:
`{StudyDescription}`, `{RequestAttributesSequence.RequestedProcedureID}`, `{now}` (DT, UTC), `{rule}` (the name); `{{` and `}}` are
braces. A value that is one placeholder alone takes over all values of the attribute, sequences too, and is empty where there are none.

What a template leaves out is filled in (FILLED_IN, and see `make`); Input Information Sequence is always made here.

To fill in one more attribute, add it to FILLED_IN or COPIED.
"""

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from gantry_runtime import rule_file
from gantry_standard import errors
from gantry_standard.dicom import native_xml
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.pydicom_tables import KEYWORDS, tag_of
from gantry_standard.workitems import vr_of
from gantry_workflow.workitems import dataset, transactions
from gantry_workflow.workitems.dataset import Dataset, has_value

LEVELS = ("study", "series", "instance")
Level = Literal["study", "series", "instance"]

LONGEST_VALUE = 4096
"""Characters of a value that rules look at; a longer one matches nothing, so that no expression runs for long."""
LARGEST_TEMPLATE_BYTES = 1 << 20
NAMESPACE = uuid.UUID("0c2bb3a5-6a3c-5d4e-9a55-41c1e3a0f8d7")
"""Of the UIDs of workitems that rules make. Part of the data format: never changes."""

COPIED = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AdmissionID", "StudyInstanceUID")
"""Attributes that a workitem has from its input where the template has none."""
FILLED_IN = {
    "ScheduledProcedureStepPriority": "MEDIUM",
    "ProcedureStepLabel": "{rule}",
    "ScheduledProcedureStepStartDateTime": "{now}",
    "InputReadinessState": "READY",
    "ProcedureStepState": "SCHEDULED",
}
"""Attributes that must have a value, and what they get where the template has none."""

INPUT_INFORMATION = tag_of("InputInformationSequence")
REFERENCED_REQUEST = tag_of("ReferencedRequestSequence")
STUDY_INSTANCE_UID = tag_of("StudyInstanceUID")
ACCESSION_NUMBER = tag_of("AccessionNumber")

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_WITHOUT_TEXT = {"OB", "OD", "OF", "OL", "OV", "OW", "UN", "SQ", ""}
_SPECIAL = ("now", "rule")

TagPath = tuple[str, ...]
"""Tags from the root to an attribute."""
Find = Callable[[TagPath], dict[str, Any]]
"""Returns the element that a placeholder stands for; {} where there is none."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`pattern` against the whole value of an attribute."""

    path: TagPath
    pattern: re.Pattern[str]

    def holds(self, instance: Dataset) -> bool:
        """Say whether the value, in any item that the path leads to, is as expected."""
        found = [_text_of(element) for element in _elements(instance, self.path)] or [""]
        return any(len(text) <= LONGEST_VALUE and self.pattern.fullmatch(text) is not None for text in found)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        level: what one workitem is for.
        template: DICOM JSON object with placeholders.
        needs: tags of an instance that `make` may look at.
    """

    name: str
    level: Level
    conditions: tuple[Condition, ...]
    template: Dataset
    needs: frozenset[str] = frozenset()

    def matches(self, instance: Dataset) -> bool:
        """Say whether all conditions hold in the data set of an instance."""
        return all(condition.holds(instance) for condition in self.conditions)

    def workitem_uid(self, *uids: str) -> str:
        """Return the UID of the workitem for a study, series or instance: always the same."""
        return f"2.25.{uuid.uuid5(NAMESPACE, chr(10).join((self.name, *uids))).int}"


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance that is input."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def make(rule: Rule, instance: Dataset, inputs: Iterable[Reference], url: str) -> Dataset:
    """Fill in the template of a rule.

    Args:
        instance: the first that matched; of it what the rule `needs` is enough.
        inputs: what the workitem is about.
        url: DICOMweb root at which it can be retrieved.

    Raises:
        errors.BadRequest: the result is no data set; the message names the attribute, never a value.
    """

    def find(path: TagPath) -> dict[str, Any]:
        return next((element for element in _elements(instance, path) if has_value({"": element}, "")), {})

    made = _filled(rule.template, _legal(find), rule.name)
    for tag in map(tag_of, COPIED):
        made.setdefault(tag, {"vr": vr_of(tag)} | _legal(find)((tag,)))
    if REFERENCED_REQUEST not in made and has_value(instance, ACCESSION_NUMBER):
        request = {tag: _legal(find)((tag,)) or {"vr": vr_of(tag)} for tag in (STUDY_INSTANCE_UID, ACCESSION_NUMBER)}
        made[REFERENCED_REQUEST] = {"vr": "SQ", "Value": [request]}
    for keyword, text in FILLED_IN.items():
        if not has_value(made, tag_of(keyword)):
            made[tag_of(keyword)] = {"vr": vr_of(tag_of(keyword)), "Value": [_substituted(text, find, rule.name)]}
    made[INPUT_INFORMATION] = {"vr": "SQ", "Value": list(_input_information(inputs, url))}
    return dataset.parse(orjson.dumps(made))


def _input_information(inputs: Iterable[Reference], url: str) -> Iterator[Dataset]:
    """Yield one item for each series (PS3.3 Table 10-3b)."""
    series: dict[tuple[str, str], list[Dataset]] = {}
    for one in inputs:
        series.setdefault((one.study_instance_uid, one.series_instance_uid), []).append(
            {
                tag_of("ReferencedSOPClassUID"): {"vr": "UI", "Value": [one.sop_class_uid]},
                tag_of("ReferencedSOPInstanceUID"): {"vr": "UI", "Value": [one.sop_instance_uid]},
            }
        )
    for (study_instance_uid, series_instance_uid), referenced in series.items():
        retrieve_url = f"{url.rstrip('/')}/studies/{study_instance_uid}/series/{series_instance_uid}"
        yield {
            tag_of("TypeOfInstances"): {"vr": "CS", "Value": ["DICOM"]},
            tag_of("StudyInstanceUID"): {"vr": "UI", "Value": [study_instance_uid]},
            tag_of("SeriesInstanceUID"): {"vr": "UI", "Value": [series_instance_uid]},
            tag_of("ReferencedSOPSequence"): {"vr": "SQ", "Value": referenced},
            tag_of("WADORSRetrievalSequence"): {
                "vr": "SQ",
                "Value": [{tag_of("RetrieveURL"): {"vr": "UR", "Value": [retrieve_url]}}],
            },
        }


def _legal(find: Find) -> Find:
    """Leave out what an instance holds that no workitem may: a birth date that is none must not keep its study from being worked on."""

    def found(path: TagPath) -> dict[str, Any]:
        element = find(path)
        try:
            return dict(dataset.parse(orjson.dumps({path[-1]: element})).get(path[-1], {})) if element else {}
        except errors.BadRequest:
            return {}

    return found


def _elements(data_set: Dataset, path: TagPath) -> Iterator[dict[str, Any]]:
    """Yield the elements that a path leads to, in the order of items."""
    element = data_set.get(path[0])
    if element is None:
        return
    if len(path) == 1:
        yield element
        return
    for item in element.get("Value", ()):
        if isinstance(item, dict):
            yield from _elements(item, path[1:])


def _text_of(element: Mapping[str, Any]) -> str:
    """Return the values of an element as text, joined by a backslash; component groups of a person name by an equals sign."""
    return "\\".join(_value_text(value) for value in element.get("Value", ()))


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        groups = [str(value.get(group, "")) for group in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _filled(template: Dataset, find: Find, rule_name: str) -> Dataset:
    """Return a data set with its placeholders replaced."""
    return {tag: _filled_element(tag, element, find, rule_name) for tag, element in template.items()}


def _filled_element(tag: str, element: Any, find: Find, rule_name: str) -> Any:
    held = element.get("Value") if isinstance(element, dict) else None
    if not isinstance(held, list):
        return element
    vr = str(element.get("vr") or vr_of(tag))
    path = _sole_placeholder(held)
    if path is not None:
        found = find(path)
        if found.get("vr") == vr:
            return found
        texts = [text for text in map(_value_text, found.get("Value", ())) if text] if found.get("vr") not in _WITHOUT_TEXT else []
        return {"vr": vr, "Value": [{"Alphabetic": text} for text in texts] if vr == "PN" else texts}
    return {"vr": vr, "Value": [_filled_value(vr, value, find, rule_name) for value in held]}


def _filled_value(vr: str, value: Any, find: Find, rule_name: str) -> Any:
    if isinstance(value, str):
        return _substituted(value, find, rule_name)
    if vr == "SQ" and isinstance(value, dict):
        return _filled(value, find, rule_name)
    if vr == "PN" and isinstance(value, dict):
        return {group: _substituted(text, find, rule_name) if isinstance(text, str) else text for group, text in value.items()}
    return value


def _sole_placeholder(held: Sequence[Any]) -> TagPath | None:
    """Return the attribute that alone makes up a value; None where there is more, or none."""
    if len(held) != 1:
        return None
    value = held[0]
    text = value.get("Alphabetic") if isinstance(value, dict) and set(value) == {"Alphabetic"} else value
    match = _PLACEHOLDER.fullmatch(text) if isinstance(text, str) else None
    return _path(match[1]) if match and match[1] and match[1] not in _SPECIAL else None


def _substituted(text: str, find: Find, rule_name: str) -> str:
    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name in _SPECIAL:
            return transactions.now() if name == "now" else rule_name
        path = _path(name)
        return _text_of(find(path)) if path else ""

    return _PLACEHOLDER.sub(replacement, text)


def _path(name: str) -> TagPath | None:
    """Return the tags of a name: a keyword or tag, or several joined by dots; None where one is neither."""
    tags = [_tag(part) for part in name.split(".")]
    is_nested = all(vr_of(tag) == "SQ" for tag in tags[:-1])
    return tuple(tags) if all(tags) and is_nested else None


def _tag(name: str) -> str:
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name) and vr_of(name.upper()):
        return name.upper()
    return tag_of(name) if name in KEYWORDS else ""


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Read a file of rules and their templates.

    Raises:
        ValueError: a file cannot be read, or rules are wrong; one line per problem.
    """
    rules, problems = rule_file.load(path, lambda where, entry, found: _rule(where, entry, path.parent, found))
    if not rules:
        raise ValueError(f"{path}: expected at least one [[rule]]")
    names = [rule.name for rule in rules]
    problems += [f"name {name!r}: {names.count(name)} rules have it, expected one" for name in sorted(set(names)) if names.count(name) > 1]
    rule_file.refuse(path, problems)
    return rules


def _rule(where: str, entry: Mapping[str, Any], folder: Path, problems: list[str]) -> Rule:
    if unknown := sorted(entry.keys() - {"name", "level", "template", "match"}):
        problems.append(f"{where}: {', '.join(unknown)}: expected name, level, template and match only")
    name, level, conditions, template = entry.get("name"), entry.get("level", "study"), entry.get("match"), entry.get("template")
    if not isinstance(name, str) or not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,64}", name):
        problems.append(f"{where}: name: expected 1 to 64 printable ASCII characters, no backslash")
        name = where
    if level not in LEVELS:
        problems.append(f"{where}: level: expected one of {', '.join(LEVELS)}")
        level = "study"
    if not isinstance(conditions, dict) or not conditions:
        problems.append(f"{where}: expected [rule.match] with at least one attribute")
        conditions = {}
    made = [_condition(where, key, pattern, problems) for key, pattern in conditions.items()]
    data_set: Dataset = {}
    if isinstance(template, str) and template:
        data_set = _template(f"{where}: {template}", folder / template, name, problems)
    else:
        problems.append(f"{where}: template: expected the name of a file")
    needs = {*map(tag_of, COPIED), ACCESSION_NUMBER, *(path[0] for path in _placeholders(data_set))}
    return Rule(name, level, tuple(filter(None, made)), data_set, frozenset(needs))


def _condition(where: str, key: str, pattern: object, problems: list[str]) -> Condition | None:
    path = _path(key)
    if path is None or vr_of(path[-1]) in _WITHOUT_TEXT:
        problems.append(f"{where}: match {key}: expected the keyword of an attribute that holds text or numbers, after those of sequences")
        return None
    if not isinstance(pattern, str):
        problems.append(f"{where}: match {key}: expected a regular expression")
        return None
    try:
        return Condition(path, re.compile(pattern, re.DOTALL))
    except re.error as error:
        problems.append(f"{where}: match {key}: {error}")
        return None


def _template(where: str, path: Path, rule_name: str, problems: list[str]) -> Dataset:
    """Read a template and try it: with a likely value for each placeholder it must make a workitem."""
    try:
        data_set = _read(path)
    except (OSError, ValueError, ScanFailure) as error:
        problems.append(f"{where}: {error}")
        return {}
    wrong = sorted(set(_wrong_placeholders(data_set)))
    problems += [
        f"{where}: {text}: expected {{Keyword}}, {{Sequence.Keyword}}, {{now}} or {{rule}}; a brace is {{{{ or }}}}" for text in wrong
    ]
    if wrong:
        return {}
    try:
        _try(Rule(rule_name, "study", (), data_set))
    except errors.BadRequest as error:
        problems.append(f"{where}: {error.message}")
    return data_set


def _read(path: Path) -> Dataset:
    if path.stat().st_size > LARGEST_TEMPLATE_BYTES:
        raise ValueError(f"larger than {LARGEST_TEMPLATE_BYTES} bytes")
    content = path.read_bytes()
    found: Any = native_xml.to_json_model(content) if path.suffix.lower() == ".xml" else orjson.loads(content)
    if isinstance(found, list) and len(found) == 1:
        (found,) = found
    if not isinstance(found, dict) or not all(isinstance(element, dict) for element in found.values()):
        raise ValueError("expected one DICOM JSON object")
    return {str(tag).upper(): element for tag, element in found.items()}


def _placeholders(value: Any) -> Iterator[TagPath]:
    """Yield the attributes that a template has placeholders for."""
    if isinstance(value, str):
        yield from (path for match in _PLACEHOLDER.finditer(value) if match[1] and (path := _path(match[1])))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _placeholders(inner)


def _wrong_placeholders(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        for match in _PLACEHOLDER.finditer(value):
            if match[0] in "{}" or (match[1] is not None and match[1] not in _SPECIAL and _path(match[1]) is None):
                yield match[0]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _wrong_placeholders(inner)


_LIKELY: dict[str, Any] = {
    "AE": "AE", "AS": "030Y", "CS": "TEXT", "DA": "20260101", "DS": 1, "DT": "20260101120000", "IS": 1, "LO": "text", "LT": "text",
    "PN": {"Alphabetic": "Name"}, "SH": "text", "ST": "text", "TM": "120000", "UC": "text", "UI": "1.2.3", "UT": "text",
    "UR": "http://host/", "FD": 1.0, "FL": 1.0, "SL": 1, "SS": 1, "SV": 1, "UL": 1, "US": 1, "UV": 1,
    "SQ": {"00080100": {"vr": "SH", "Value": ["C"]}, "00080102": {"vr": "SH", "Value": ["S"]}, "00080104": {"vr": "LO", "Value": ["M"]}},
}  # fmt: skip
"""A value of each VR: what a placeholder stands for when a template is tried."""


def _try(rule: Rule) -> None:
    def likely(path: TagPath) -> dict[str, Any]:
        vr = vr_of(path[-1])
        return {"vr": vr, "Value": [_LIKELY[vr]]} if vr in _LIKELY else {}

    filled = {"vr": "UI", "Value": ["1.2.3"]}
    instance: Dataset = {STUDY_INSTANCE_UID: filled, ACCESSION_NUMBER: {"vr": "SH", "Value": ["1"]}}
    tried = Rule(rule.name, rule.level, (), _filled(rule.template, likely, rule.name))
    made = make(tried, instance, [Reference("1.2.3", "1.2.4", "1.2.5", "1.2.6")], "http://host")
    transactions.create(None, "2.25.1", made, strict=False)
