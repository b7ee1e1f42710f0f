"""Payloads of Store other than PS3.10 files: metadata as JSON (written by pydicom) or XML (written here), and bulkdata."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import httpx
import orjson
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from tests.support.dicomweb import JSON, DicomWeb, Object

XML = "application/dicom+xml"
OCTETS = "application/octet-stream"
PIXEL_DATA = "7FE00010"
PIXEL_DESCRIPTION = ("00280002", "00280004", "00280006", "00280010", "00280011", "00280100", "00280101", "00280102", "00280103")
"""Image Pixel Description Macro (PS3.3 Table C.7-11c)."""


@dataclass(frozen=True)
class Sent:
    """One part of a request."""

    content_type: str
    content: bytes
    location: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self, boundary: str) -> bytes:
        """Return the part with its delimiter before it."""
        headers = {"Content-Type": self.content_type, "Content-Location": self.location, **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        return f"--{boundary}\r\n{lines}\r\n".encode() + self.content + b"\r\n"


def post(dicomweb: DicomWeb, parts: Iterable[Sent], *, root: str = JSON, study: str = "", accept: str = JSON) -> httpx.Response:
    """Store parts in one request whose type parameter is `root`."""
    boundary = secrets.token_hex(16)
    body = b"".join(part.encoded(boundary) for part in parts) + f"--{boundary}--\r\n".encode()
    content_type = f'multipart/related; type="{root}"; boundary={{boundary}}'
    return dicomweb.post_related(body, boundary, study, accept, content_type)


def json_model(data_set: Dataset, uri: str = "bulk/pixels") -> Object:
    """Return the metadata of an instance as pydicom writes it; its pixel data is at `uri`, or "" if it has none."""
    model: Object = data_set.to_json_dict(bulk_data_threshold=1 << 30)
    if PIXEL_DATA in model:
        model[PIXEL_DATA] = {"vr": model[PIXEL_DATA]["vr"], "BulkDataURI": uri}
    return model


def metadata(*models: Object, transfer_syntax: str = "") -> Sent:
    """Return the metadata part: one array of all data sets."""
    parameter = f"; transfer-syntax={transfer_syntax}" if transfer_syntax else ""
    return Sent(JSON + parameter, orjson.dumps(models))


def without_pixel_description(model: Object) -> Object:
    """Return a model without the Image Pixel Description Macro."""
    return {tag: element for tag, element in model.items() if tag not in PIXEL_DESCRIPTION}


def xml_document(model: Object) -> bytes:
    """Return a model as a Native DICOM Model document (PS3.19 §A.1)."""
    inner = _attributes(model)
    return f'<?xml version="1.0" encoding="UTF-8"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">{inner}</NativeDicomModel>'.encode()


def _attributes(model: Object) -> str:
    return "".join(_attribute(tag, element, model) for tag, element in model.items())


def _attribute(tag: str, element: Object, model: Object) -> str:
    number = int(tag, 16)
    named = f" keyword={quoteattr(keyword_for_tag(number))}" if keyword_for_tag(number) else ""
    if number >> 16 & 1 and number & 0xFFFF > 0xFF:
        creator = model[f"{number >> 16:04X}00{number >> 8 & 0xFF:02X}"]["Value"][0]
        named, tag = f" privateCreator={quoteattr(creator)}", f"{number >> 16:04X}00{number & 0xFF:02X}"
    content = "".join(_value(position, value) for position, value in enumerate(element.get("Value", []), 1))
    if "BulkDataURI" in element:
        content = f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
    if "InlineBinary" in element:
        content = f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    return f'<DicomAttribute tag="{tag}" vr="{element["vr"]}"{named}>{content}</DicomAttribute>'


def _value(number: int, value: Any) -> str:
    if isinstance(value, dict) and set(value) & {"Alphabetic", "Ideographic", "Phonetic"}:
        groups = "".join(f"<{group}>{_name(text)}</{group}>" for group, text in value.items())
        return f'<PersonName number="{number}">{groups}</PersonName>'
    if isinstance(value, dict):
        return f'<Item number="{number}">{_attributes(value)}</Item>'
    return f'<Value number="{number}">{escape(str(value))}</Value>'


def _name(text: str) -> str:
    names = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
    return "".join(f"<{name}>{escape(part)}</{name}>" for name, part in zip(names, text.split("^"), strict=False) if part)
