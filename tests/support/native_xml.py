"""Checks and reads documents of the Native DICOM Model, without code of Gantry.

Source: PS3.19 §A.1 (Relax NG of A.1.6).
"""

import base64
import itertools
import re
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pydicom.datadict import keyword_for_tag

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
BINARY = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}
GROUPS = ["Alphabetic", "Ideographic", "Phonetic"]
COMPONENTS = ["FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix"]
VRS = BINARY | {"AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SQ", "SS", "ST", "SV", "TM"}
VRS |= {"UC", "UI", "UL", "UR", "US", "UT", "UV"}

Model = dict[str, dict[str, Any]]
"""From tag, and creator of a private one, to vr and content: text values by PS3.18 Table F.3.1-1, all as strings."""


def checked(document: bytes) -> Element:
    """Check the structure of a document and return its root."""
    assert document.startswith(b'<?xml version="1.0" encoding="UTF-8"?>')
    assert b"<!DOCTYPE" not in document
    root = ElementTree.fromstring(document)
    assert root.tag == f"{{{NAMESPACE}}}NativeDicomModel"
    assert root.attrib == {"{http://www.w3.org/XML/1998/namespace}space": "preserve"}
    _check_data_set(root)
    return root


def _name(element: Element) -> str:
    namespace, _, name = element.tag.rpartition("}")
    assert namespace == "{" + NAMESPACE
    return name


def _check_data_set(element: Element) -> None:
    assert not (element.text or "").strip()
    order = []
    for attribute in element:
        assert _name(attribute) == "DicomAttribute"
        assert not (attribute.text or "").strip()
        assert not (attribute.tail or "").strip()
        assert set(attribute.attrib) <= {"tag", "vr", "keyword", "privateCreator"}
        _check_identity(attribute)
        _check_content(attribute)
        order.append((attribute.attrib["tag"], attribute.attrib.get("privateCreator", "")))
    assert order == sorted(order)
    assert len(order) == len(set(order))


def _check_identity(attribute: Element) -> None:
    tag, creator = attribute.attrib["tag"], attribute.attrib.get("privateCreator")
    assert re.fullmatch("[0-9A-F]{8}", tag)
    assert tag[4:] != "0000" or creator, "a group length"
    assert attribute.attrib["vr"] in VRS
    if int(tag[3], 16) % 2:
        assert "keyword" not in attribute.attrib
        assert creator, f"{tag} has no privateCreator"
        assert tag[4:6] == "00"
    else:
        assert creator is None
        assert attribute.attrib.get("keyword", "") == keyword_for_tag(int(tag, 16))


def _check_content(attribute: Element) -> None:
    vr = attribute.attrib["vr"]
    kinds = {_name(child) for child in attribute}
    assert len(kinds) <= 1, kinds
    if not kinds:
        return
    (kind,) = kinds
    expected = "InlineBinary" if vr in BINARY else {"SQ": "Item", "PN": "PersonName"}.get(vr, "Value")
    assert kind == expected or (kind == "BulkData" and vr not in ("SQ", "PN"))
    if kind in ("BulkData", "InlineBinary"):
        (child,) = attribute
        assert set(child.attrib) == ({"uri"} if kind == "BulkData" else set())
        assert child.attrib.get("uri", "x")
        assert kind == "BulkData" or base64.b64decode(child.text or "", validate=True)
        return
    assert [child.attrib for child in attribute] == [{"number": str(number)} for number in range(1, len(attribute) + 1)]
    for child in attribute:
        if kind == "Item":
            _check_data_set(child)
        elif kind == "PersonName":
            _check_parts(child, GROUPS)
            for group in child:
                _check_parts(group, COMPONENTS)
        else:
            assert not len(child)


def _check_parts(element: Element, names: list[str]) -> None:
    found = [_name(part) for part in element]
    assert found == [name for name in names if name in found]
    assert not (element.text or "").strip()
    assert not element.attrib or names == GROUPS


def read(data_set: Element) -> Model:
    """Return the data set of a root or an item."""
    found: Model = {}
    for attribute in data_set:
        found[f"{attribute.attrib['tag']} {attribute.attrib.get('privateCreator', '')}".strip()] = _element(attribute)
    return found


def _element(attribute: Element) -> dict[str, Any]:
    element: dict[str, Any] = {"vr": attribute.attrib["vr"]}
    children = list(attribute)
    if not children:
        return element
    kind = _name(children[0])
    if kind == "BulkData":
        return element | {"BulkDataURI": children[0].attrib["uri"]}
    if kind == "InlineBinary":
        return element | {"InlineBinary": children[0].text}
    if kind == "Item":
        return element | {"Value": [read(child) for child in children]}
    if kind == "PersonName":
        return _with_values(element, [_person_name(child) for child in children])
    return _with_values(element, [child.text for child in children])


def _with_values(element: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """Return an element with its values; an empty value is None."""
    rest = {key: value for key, value in element.items() if key != "Value"}
    return rest if values == [None] else rest | {"Value": values}


def _person_name(name: Element) -> dict[str, str] | None:
    groups = {}
    for group in name:
        components = {_name(part): part.text or "" for part in group}
        groups[_name(group)] = "^".join(components.get(name, "") for name in COMPONENTS).rstrip("^")
    return groups or None


_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def expected(data_set: dict[str, Any]) -> Model:
    """Return what `read` must find in the document of a DICOM JSON object whose numbers are strings."""
    found: Model = {}
    for key in sorted(data_set):
        private = int(key[3], 16) % 2 == 1
        if private and key[4:6] == "00":
            continue
        creator = _NO_XML.sub("", data_set[f"{key[:4]}00{key[4:6]}"]["Value"][0]) if private else ""
        element = data_set[key]
        if "Value" in element:
            element = _with_values(element, [_value(element["vr"], value) for value in element["Value"]])
        found[f"{key[:4]}00{key[6:]} {creator}" if private else key] = element
    return dict(sorted(found.items()))


def _value(vr: str, value: Any) -> Any:
    if vr == "SQ":
        return expected(value or {})
    if vr == "PN":
        groups = {group: _NO_XML.sub("", text).rstrip("^") for group, text in (value or {}).items()}
        return {group: text for group, text in groups.items() if text} or None
    return None if value is None else _NO_XML.sub("", str(value)) or None


def attributes(root: Element) -> list[Element]:
    """Return every DicomAttribute of a document, at every depth."""
    return list(itertools.chain(root.iter(f"{{{NAMESPACE}}}DicomAttribute")))


def without_orphans(data_set: dict[str, Any]) -> dict[str, Any]:
    """Return a data set without private elements that have no creator: PS3.19 has no form for them."""
    kept = {}
    for key, element in data_set.items():
        creator = data_set.get(f"{key[:4]}00{key[4:6]}", {}).get("Value", [None])[0]
        if int(key[3], 16) % 2 and not (isinstance(creator, str) or "0010" <= key[4:] <= "00FF"):
            continue
        items = element.get("Value", []) if element["vr"] == "SQ" else []
        kept[key] = element | {"Value": [without_orphans(item) for item in items]} if items else element
    return kept
