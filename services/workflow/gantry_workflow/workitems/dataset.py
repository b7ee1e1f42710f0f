"""Reads data sets in the DICOM JSON Model, checks them and normalizes them.

Inside workflow a data set is a dict of tag → {"vr": …, "Value": […]}. The result of `parse` has upper-case tags in ascending order, a
VR for each element, no empty `Value`, and values of the JSON type and format that the VR requires.

Source: PS3.18 Annex F.
"""

import re
from typing import Any

import orjson

from gantry_standard import errors, workitems
from gantry_standard.dicom.value_forms import PERSON_NAME_GROUP, has_form

Dataset = dict[str, Any]

MAX_DEPTH = 64
MAX_ELEMENTS = 100_000

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_BINARY = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}
_NUMBERS = {"FL", "FD", "SL", "SS", "UL", "US"}
_NUMBERS_OR_TEXT = {"DS", "IS", "SV", "UV"}
_TEXT = {"AE", "AS", "AT", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
_COMPONENT_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def parse(data: bytes) -> Dataset:
    """Read and normalize one DICOM JSON object.

    Raises:
        errors.BadRequest: it is not a JSON object, or an element does not fit its VR.
    """
    try:
        data_set = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise errors.BadRequest(f"the payload is not JSON: {error}") from None
    if not isinstance(data_set, dict):
        raise errors.BadRequest("the payload is not a DICOM JSON object")
    return _checked(data_set, 0, [0])


def dump(dataset: Dataset) -> bytes:
    """Encode a data set as DICOM JSON, with its tags in ascending order."""
    return orjson.dumps(dataset, option=orjson.OPT_SORT_KEYS)


def read(data: bytes) -> Dataset:
    """Return the data set that `dump` encoded; {} for no bytes."""
    data_set: Dataset = orjson.loads(data) if data else {}
    return data_set


def copied(dataset: Dataset) -> Dataset:
    """Copy a data set and its items, so that elements of the copy can be added, replaced and removed at every depth."""
    return {
        tag: {"vr": "SQ", "Value": [copied(item) for item in element["Value"]]} if element["vr"] == "SQ" and "Value" in element else element
        for tag, element in dataset.items()
    }


def values(dataset: Dataset, tag: str) -> list[Any]:
    """Return the values of an element; [] if it is empty or missing."""
    values_of_element: list[Any] = dataset.get(tag, {}).get("Value", [])
    return values_of_element


def text(dataset: Dataset, tag: str) -> str:
    """Return the first value of an element as text; "" if there is none."""
    texts = values(dataset, tag)
    return str(texts[0]) if texts and texts[0] is not None else ""


def has_value(dataset: Dataset, tag: str) -> bool:
    """Return whether an element is present and not empty."""
    element = dataset.get(tag, {})
    return bool(element.get("Value")) or "InlineBinary" in element or "BulkDataURI" in element


def _checked(dataset: Dataset, depth: int, count: list[int]) -> Dataset:
    if depth > MAX_DEPTH:
        raise errors.BadRequest(f"sequences are nested deeper than {MAX_DEPTH}")
    count[0] += len(dataset)
    if count[0] > MAX_ELEMENTS:
        raise errors.BadRequest(f"the data set has more than {MAX_ELEMENTS} elements")
    out: Dataset = {}
    for key, element in dataset.items():
        if not _TAG.fullmatch(key):
            raise errors.BadRequest(f"{key[:20]!r} is not a tag: expected 8 hexadecimal digits")
        tag = key.upper()
        if tag[:4] in ("0000", "0002") or tag in out:
            raise errors.BadRequest(f"{workitems.name_of(tag)} is not allowed in the data set, or occurs twice")
        if tag[4:] != "0000":
            out[tag] = _element(tag, element, depth, count)
    return dict(sorted(out.items()))


def _element(tag: str, element: Any, depth: int, count: list[int]) -> dict[str, Any]:
    if not isinstance(element, dict):
        raise errors.BadRequest(f"{workitems.name_of(tag)} is not a JSON object")
    vr = _vr(tag, element.get("vr"))
    holders = [name for name in ("Value", "InlineBinary", "BulkDataURI") if name in element]
    if len(holders) > 1:
        raise errors.BadRequest(f"{workitems.name_of(tag)} has {' and '.join(holders)}, expected one of them")
    if not holders or element[holders[0]] in ([], ""):
        return {"vr": vr}
    content = element[holders[0]]
    if holders[0] != "Value":
        if not isinstance(content, str) or (holders[0] == "InlineBinary" and vr not in _BINARY):
            raise errors.BadRequest(f"{workitems.name_of(tag)}: {holders[0]} does not fit VR {vr}")
        return {"vr": vr, holders[0]: content}
    if not isinstance(content, list) or vr in _BINARY:
        raise errors.BadRequest(f"{workitems.name_of(tag)}: Value does not fit VR {vr}")
    converted = [_value(tag, vr, value, depth, count) for value in content]
    return {"vr": vr, "Value": converted} if any(value is not None for value in converted) else {"vr": vr}


def _vr(tag: str, given: Any) -> str:
    known = workitems.vr_of(tag)
    if given is None and known:
        return known
    if not isinstance(given, str) or not re.fullmatch(r"[A-Z]{2}", given):
        raise errors.BadRequest(f"{workitems.name_of(tag)}: vr is missing or is not two upper-case letters")
    if known and known != given and not (known in _TEXT and given in _TEXT):
        raise errors.BadRequest(f"{workitems.name_of(tag)} has vr {given}, expected {known}")
    return known or given


def _value(tag: str, vr: str, value: Any, depth: int, count: list[int]) -> Any:
    if vr == "SQ":
        if not isinstance(value, dict):
            raise errors.BadRequest(f"an item of {workitems.name_of(tag)} is not a JSON object")
        item = _checked(value, depth + 1, count)
        if workitems.is_code_sequence(tag):
            _check_code(tag, item)
        return item
    if value is None or value == "":
        return None
    if vr == "PN":
        return _person_name(tag, value)
    if vr in _NUMBERS or (vr in _NUMBERS_OR_TEXT and not isinstance(value, str)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise errors.BadRequest(f"a value of {workitems.name_of(tag)} is not a number")
        return value
    if not isinstance(value, str):
        raise errors.BadRequest(f"a value of {workitems.name_of(tag)} is not a string, which VR {vr} requires")
    value = value.rstrip() if vr in ("LT", "ST", "UT") else value.strip()
    if not has_form(vr, value):
        raise errors.BadRequest(f"a value of {workitems.name_of(tag)} does not have the form of VR {vr}")
    return value or None


def _person_name(tag: str, value: Any) -> dict[str, str] | None:
    groups = {"Alphabetic": value} if isinstance(value, str) else value
    if not isinstance(groups, dict) or not all(_is_group(name, group) for name, group in groups.items()):
        raise errors.BadRequest(f"a value of {workitems.name_of(tag)} is not a person name")
    return {name: groups[name] for name in _COMPONENT_GROUPS if groups.get(name)} or None


def _is_group(name: str, value: object) -> bool:
    return name in _COMPONENT_GROUPS and isinstance(value, str) and PERSON_NAME_GROUP.fullmatch(value) is not None


def _check_code(tag: str, item: Dataset) -> None:
    """Check one item of a code sequence (PS3.3 Table 8.8-1)."""
    if not any(has_value(item, code) for code in ("00080100", "00080119", "00080120")):
        raise errors.BadRequest(f"an item of {workitems.name_of(tag)} has no Code Value (0008,0100)")
    if has_value(item, "00080100") and not has_value(item, "00080102"):
        raise errors.BadRequest(f"an item of {workitems.name_of(tag)} has no Coding Scheme Designator (0008,0102)")
    if not has_value(item, "00080104"):
        raise errors.BadRequest(f"an item of {workitems.name_of(tag)} has no Code Meaning (0008,0104)")
