"""DICOM JSON of a file as pydicom writes it, after correcting pydicom's known differences from PS3.18 Annex F."""

import base64
from io import BytesIO
from typing import Any

import pydicom


def read(data: bytes) -> pydicom.Dataset:
    """Read a file, with or without preamble and group 2."""
    return pydicom.dcmread(BytesIO(data), force=True)


# Values that are wrong, and of which pydicom makes no JSON.
NO_VALUE_FOR_PYDICOM = {
    "badVR.dcm": {"00280008", "300C0002"},
    "GH195.dcm": {"00091105"},
    "YBR_422.dcm": {"00080018"},
    **{f"rtdose{kind}.dcm": {"300C0002"} for kind in ("", "_1frame", "_expb", "_expb_1frame", "_rle", "_rle_1frame")},
}
# In big endian, private elements of VR UN: PS3.5 §6.2.2 has them in little endian, pydicom reads them as big endian.
READ_OTHERWISE = {"CTImage.dcm_BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm"}


def is_private(tag: str) -> bool:
    """Return whether the group number is odd."""
    return int(tag[:4], 16) % 2 == 1


def json_of_pydicom(data: bytes) -> dict[str, Any]:
    """Return what `to_json_dict` gives, comparable, words in little endian."""
    data_set = read(data)
    json = comparable(data_set.to_json_dict(suppress_invalid_tags=True))
    if data_set.original_encoding == (False, False):
        wide = {32: 4, 64: 8}.get(data_set.get("BitsAllocated", 0), 2)
        _swap(json, {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}, {"7FE00010": wide})
    return json


def _swap(data_set: dict[str, Any], words: dict[str, int], by_tag: dict[str, int]) -> None:
    """Convert the values that pydicom leaves in big endian."""
    for tag, element in data_set.items():
        if element["vr"] == "SQ":
            for item in element.get("Value", []):
                _swap(item, words, by_tag)
        elif "InlineBinary" in element and element["vr"] in words:
            value, word = base64.b64decode(element["InlineBinary"]), by_tag.get(tag, words[element["vr"]])
            swapped = b"".join(value[at : at + word][::-1] for at in range(0, len(value), word))
            element["InlineBinary"] = base64.b64encode(swapped).decode()


def comparable(data_set: dict[str, Any]) -> dict[str, Any]:
    """Correct pydicom's known differences: group lengths, padding, empty values, numbers as text, character set."""
    return {
        tag: _comparable_element(element)
        for tag, element in data_set.items()
        if not tag.endswith("0000") and tag != "00080005" and not tag.startswith("0002")
    }


def _comparable_element(element: dict[str, Any]) -> dict[str, Any]:
    vr = element["vr"]
    if "InlineBinary" in element:
        return {"vr": vr, "InlineBinary": element["InlineBinary"]} if element["InlineBinary"] else {"vr": vr}
    values = element.get("Value")
    if vr == "SQ":
        return {"vr": vr, "Value": [comparable(item) for item in values]} if values else {"vr": vr}
    plain = [_comparable_value(vr, value) for value in values or []]
    return {"vr": vr, "Value": plain} if any(value is not None for value in plain) else {"vr": vr}


def _comparable_value(vr: str, value: Any) -> Any:
    if value in ("", None):
        return None
    if vr == "PN":
        # pydicom 3.0 leaves the escape sequence of a lone ISO 2022 IR 58 in the text.
        names = {group: text.replace("\x1b$)A", "").strip(" \0") for group, text in value.items()}
        return {group: text for group, text in names.items() if text} or None
    if vr in ("DS", "IS", "SV", "UV", "FL", "FD"):
        try:
            return float(value)
        except ValueError:
            return value.strip()
    return value.strip(" \0") or None if isinstance(value, str) else value
