"""Rules that create workitems for arriving studies: for which studies, series or instances, and from which template.

The rules are in a TOML file, whose path is `GANTRY_WORKITEM_RULES`. Without a file there are no rules.

    [[rule]]
    name = "liver segmentation"           # unique; the UID of a workitem is computed from it and from what matched
    level = "series"                      # one workitem for each study (default), series or instance that matches
    template = "liver.json"               # DICOM JSON, or XML (.xml: Native DICOM Model); path relative to this file

    [rule.match]                          # all conditions must hold in one instance
    Modality = "CT"                       # a regular expression that must match the whole value; "" if there is no value;
    SeriesDescription = "(?i).*portal.*"  # several values are joined by a backslash
    "RequestAttributesSequence.RequestedProcedureID" = "L-.*"       # of any item

A template is the data set of the workitem. Its text may have placeholders, which are replaced by attributes of the first instance that
matches: `{StudyDescription}`, `{RequestAttributesSequence.RequestedProcedureID}`. `{now}` is the time (DT, UTC), `{rule}` the name of
the rule; `{{` and `}}` are braces. A value that consists of one placeholder is replaced by all values of the attribute, items of a
sequence included; it is empty if there are none.

Attributes that a template lacks are added (COPIED, FILLED_IN, and see `make`). Input Information Sequence is always set by `make`.

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
"""Most characters of a value; a longer value does not match, so that no regular expression runs for long."""
LARGEST_TEMPLATE_BYTES = 1 << 20
NAMESPACE = uuid.UUID("0c2bb3a5-6a3c-5d4e-9a55-41c1e3a0f8d7")
"""Namespace of the UIDs of workitems that rules create. It is part of the data format and must not change."""

COPIED = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AdmissionID", "StudyInstanceUID")
"""Attributes that are copied from the instance if the template lacks them."""
FILLED_IN = {
    "ScheduledProcedureStepPriority": "MEDIUM",
    "ProcedureStepLabel": "{rule}",
    "ScheduledProcedureStepStartDateTime": "{now}",
    "InputReadinessState": "READY",
    "ProcedureStepState": "SCHEDULED",
}
"""Attributes that must have a value, and the value that they get if the template has none."""

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
"""Returns the element that a placeholder is replaced by; {} if there is none."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A regular expression that the whole value of an attribute must match."""

    path: TagPath
    pattern: re.Pattern[str]

    def holds(self, instance: Dataset) -> bool:
        """Return whether the value of the attribute matches, in any item if the path leads through sequences."""
        texts = [_text_of(element) for element in _elements(instance, self.path)] or [""]
        return any(len(text) <= LONGEST_VALUE and self.pattern.fullmatch(text) is not None for text in texts)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        level: whether there is one workitem for each study, series or instance.
        template: DICOM JSON object with placeholders.
        needs: tags of the attributes of an instance that `make` uses.
    """

    name: str
    level: Level
    conditions: tuple[Condition, ...]
    template: Dataset
    needs: frozenset[str] = frozenset()

    def matches(self, instance: Dataset) -> bool:
        """Return whether all conditions hold in the data set of an instance."""
        return all(condition.holds(instance) for condition in self.conditions)

    def workitem_uid(self, *uids: str) -> str:
        """Return the UID of the workitem for a study, series or instance; the same arguments give the same UID."""
        return f"2.25.{uuid.uuid5(NAMESPACE, chr(10).join((self.name, *uids))).int}"


@dataclass(frozen=True, slots=True)
class Reference:
    """One input instance of a workitem."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def make(rule: Rule, instance: Dataset, inputs: Iterable[Reference], url: str) -> Dataset:
    """Fill in the template of a rule.

    Args:
        instance: the attributes that the rule `needs` of the first matching instance.
        inputs: the input instances.
        url: DICOMweb root for the Retrieve URLs of the inputs.

    Returns:
        The data set for Create Workitem.

    Raises:
        errors.BadRequest: the result is not a valid data set; the message names the attribute, never a value.
    """

    def find(path: TagPath) -> dict[str, Any]:
        return next((element for element in _elements(instance, path) if has_value({"": element}, "")), {})

    workitem = _filled(rule.template, _legal(find), rule.name)
    for tag in map(tag_of, COPIED):
        workitem.setdefault(tag, {"vr": vr_of(tag)} | _legal(find)((tag,)))
    if REFERENCED_REQUEST not in workitem and has_value(instance, ACCESSION_NUMBER):
        request = {tag: _legal(find)((tag,)) or {"vr": vr_of(tag)} for tag in (STUDY_INSTANCE_UID, ACCESSION_NUMBER)}
        workitem[REFERENCED_REQUEST] = {"vr": "SQ", "Value": [request]}
    for keyword, text in FILLED_IN.items():
        if not has_value(workitem, tag_of(keyword)):
            workitem[tag_of(keyword)] = {"vr": vr_of(tag_of(keyword)), "Value": [_substituted(text, find, rule.name)]}
    workitem[INPUT_INFORMATION] = {"vr": "SQ", "Value": list(_input_information(inputs, url))}
    return dataset.parse(orjson.dumps(workitem))


def _input_information(inputs: Iterable[Reference], url: str) -> Iterator[Dataset]:
    """Yield one item for each series (PS3.3 Table 10-3b)."""
    series: dict[tuple[str, str], list[Dataset]] = {}
    for reference in inputs:
        series.setdefault((reference.study_instance_uid, reference.series_instance_uid), []).append(
            {
                tag_of("ReferencedSOPClassUID"): {"vr": "UI", "Value": [reference.sop_class_uid]},
                tag_of("ReferencedSOPInstanceUID"): {"vr": "UI", "Value": [reference.sop_instance_uid]},
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
    """Wrap `find` so that it returns {} for an invalid element: an invalid birth date must not prevent the workitem of its study."""

    def find_valid(path: TagPath) -> dict[str, Any]:
        element = find(path)
        try:
            return dict(dataset.parse(orjson.dumps({path[-1]: element})).get(path[-1], {})) if element else {}
        except errors.BadRequest:
            return {}

    return find_valid


def _elements(data_set: Dataset, path: TagPath) -> Iterator[dict[str, Any]]:
    """Yield the elements at a path, in the order of the items."""
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
    """Return the values of an element as text, joined by a backslash. Component groups of a person name are joined by an equals sign."""
    return "\\".join(_value_text(value) for value in element.get("Value", ()))


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        groups = [str(value.get(group, "")) for group in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _filled(template: Dataset, find: Find, rule_name: str) -> Dataset:
    """Return the data set of a template with its placeholders replaced."""
    return {tag: _filled_element(tag, element, find, rule_name) for tag, element in template.items()}


def _filled_element(tag: str, element: Any, find: Find, rule_name: str) -> Any:
    template_values = element.get("Value") if isinstance(element, dict) else None
    if not isinstance(template_values, list):
        return element
    vr = str(element.get("vr") or vr_of(tag))
    path = _sole_placeholder(template_values)
    if path is not None:
        source_element = find(path)
        if source_element.get("vr") == vr:
            return source_element
        texts = (
            [text for text in map(_value_text, source_element.get("Value", ())) if text]
            if source_element.get("vr") not in _WITHOUT_TEXT
            else []
        )
        return {"vr": vr, "Value": [{"Alphabetic": text} for text in texts] if vr == "PN" else texts}
    return {"vr": vr, "Value": [_filled_value(vr, value, find, rule_name) for value in template_values]}


def _filled_value(vr: str, value: Any, find: Find, rule_name: str) -> Any:
    if isinstance(value, str):
        return _substituted(value, find, rule_name)
    if vr == "SQ" and isinstance(value, dict):
        return _filled(value, find, rule_name)
    if vr == "PN" and isinstance(value, dict):
        return {group: _substituted(text, find, rule_name) if isinstance(text, str) else text for group, text in value.items()}
    return value


def _sole_placeholder(template_values: Sequence[Any]) -> TagPath | None:
    """Return the attribute of values that consist of one placeholder; None if there is other text, or no placeholder."""
    if len(template_values) != 1:
        return None
    value = template_values[0]
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
    """Return the tags of a name: keywords or tags joined by dots; None if one of them is neither."""
    tags = [_tag(part) for part in name.split(".")]
    is_nested = all(vr_of(tag) == "SQ" for tag in tags[:-1])
    return tuple(tags) if all(tags) and is_nested else None


def _tag(name: str) -> str:
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name) and vr_of(name.upper()):
        return name.upper()
    return tag_of(name) if name in KEYWORDS else ""


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Read the file of rules and their templates.

    Raises:
        ValueError: a file cannot be read, or a rule is wrong; the message has one line per problem.
    """
    rules, problems = rule_file.load(path, lambda where, entry, problems_of_entry: _rule(where, entry, path.parent, problems_of_entry))
    if not rules:
        raise ValueError(f"{path}: expected at least one [[rule]]")
    names = [rule.name for rule in rules]
    problems += [
        f"name {name!r}: {names.count(name)} rules have this name, expected one" for name in sorted(set(names)) if names.count(name) > 1
    ]
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
    parsed_conditions = [_condition(where, key, pattern, problems) for key, pattern in conditions.items()]
    data_set: Dataset = {}
    if isinstance(template, str) and template:
        data_set = _template(f"{where}: {template}", folder / template, name, problems)
    else:
        problems.append(f"{where}: template: expected the name of a file")
    needs = {*map(tag_of, COPIED), ACCESSION_NUMBER, *(path[0] for path in _placeholders(data_set))}
    return Rule(name, level, tuple(filter(None, parsed_conditions)), data_set, frozenset(needs))


def _condition(where: str, key: str, pattern: object, problems: list[str]) -> Condition | None:
    path = _path(key)
    if path is None or vr_of(path[-1]) in _WITHOUT_TEXT:
        problems.append(f"{where}: match {key}: expected the keyword of an attribute with text or numbers, or Sequence.Keyword")
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
    """Read a template and test it: with an example value for each placeholder it must give a valid workitem."""
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
    data_set: Any = native_xml.to_json_model(content) if path.suffix.lower() == ".xml" else orjson.loads(content)
    if isinstance(data_set, list) and len(data_set) == 1:
        (data_set,) = data_set
    if not isinstance(data_set, dict) or not all(isinstance(element, dict) for element in data_set.values()):
        raise ValueError("expected one DICOM JSON object")
    return {str(tag).upper(): element for tag, element in data_set.items()}


def _placeholders(value: Any) -> Iterator[TagPath]:
    """Yield the attributes of the placeholders in a template."""
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
"""VR → the example value that placeholders are replaced by when a template is tested."""


def _try(rule: Rule) -> None:
    def likely(path: TagPath) -> dict[str, Any]:
        vr = vr_of(path[-1])
        return {"vr": vr, "Value": [_LIKELY[vr]]} if vr in _LIKELY else {}

    study_instance_uid = {"vr": "UI", "Value": ["1.2.3"]}
    instance: Dataset = {STUDY_INSTANCE_UID: study_instance_uid, ACCESSION_NUMBER: {"vr": "SH", "Value": ["1"]}}
    tried = Rule(rule.name, rule.level, (), _filled(rule.template, likely, rule.name))
    workitem = make(tried, instance, [Reference("1.2.3", "1.2.4", "1.2.5", "1.2.6")], "http://host")
    transactions.create(None, "2.25.1", workitem, strict=False)
