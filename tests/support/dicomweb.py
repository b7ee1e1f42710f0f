"""A DICOMweb client for tests: helpers on httpx, and a strict reader of multipart/related."""

import itertools
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any

import httpx

DICOM = 'multipart/related; type="application/dicom"'
AS_STORED = f"{DICOM}; transfer-syntax=*"
OCTETS = 'multipart/related; type="application/octet-stream"'
OCTETS_AS_STORED = f"{OCTETS}; transfer-syntax=*"
JSON = "application/dicom+json"
XML = 'multipart/related; type="application/dicom+xml"'

EXPLICIT_LE = "1.2.840.10008.1.2.1"

Object = dict[str, Any]
"""A DICOM JSON object."""


@dataclass(frozen=True)
class Part:
    """One part of an answer: header fields as sent, and its bytes."""

    headers: list[tuple[str, str]]
    content: bytes

    def header(self, name: str) -> str:
        """Return the only field of this name, or "" if there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} stands {len(values)} times in a part"
        return values[0] if values else ""

    @property
    def transfer_syntax(self) -> str:
        """The transfer-syntax parameter of the Content-Type."""
        return str(_content_type(self.header("Content-Type")).get_param("transfer-syntax", ""))


def _content_type(value: str) -> Message:
    message = Message()
    message["Content-Type"] = value
    return message


def parts_of(response: httpx.Response, statuses: tuple[int, ...] = (200, 206)) -> list[Part]:
    """Read a multipart/related answer, strictly: CRLF everywhere, no preamble, a closing boundary and nothing after it.

    Checks PS3.18 §8.6.1.2 on the way: type and boundary parameters, a legal boundary that no part holds, a Content-Type in each part.
    """
    assert response.status_code in statuses, f"{response.status_code} {response.text[:500]}"
    content_type = _content_type(response.headers["content-type"])
    assert content_type.get_content_type() == "multipart/related", response.headers["content-type"]
    assert content_type.get_param("type"), "multipart/related without type"
    boundary = str(content_type.get_param("boundary"))
    assert re.fullmatch(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]", boundary), boundary
    delimiter = b"--" + boundary.encode()
    body = b"\r\n" + response.content.removeprefix(b"\r\n")
    sections = body.split(b"\r\n" + delimiter)
    assert sections[0] == b"", "bytes before the first boundary"
    assert sections[-1] in (b"--", b"--\r\n"), f"no closing boundary: {sections[-1][:40]!r}"
    return [_part(section, delimiter) for section in sections[1:-1]]


def _part(section: bytes, delimiter: bytes) -> Part:
    assert section.startswith(b"\r\n"), "a boundary is not followed by CRLF"
    head, separator, content = section[2:].partition(b"\r\n\r\n")
    assert separator, "a part without a blank line"
    assert delimiter not in content, "the boundary stands inside a part"
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head.decode("ascii").split("\r\n"))]
    part = Part(headers, content)
    assert part.header("Content-Type"), "a part without Content-Type"
    if length := part.header("Content-Length"):
        assert int(length) == len(content)
    return part


def related(contents: Iterable[bytes], boundary: str, part_type: str = "application/dicom", newline: bytes = b"\r\n") -> bytes:
    """Return a body with one part per content; without `part_type` the parts have no Content-Type."""
    head = b"Content-Type: " + part_type.encode() + newline if part_type else b""
    pieces = [b"--" + boundary.encode() + newline + head + newline + content + newline for content in contents]
    return b"".join(pieces) + b"--" + boundary.encode() + b"--" + newline


class DicomWeb:
    """A client of one DICOMweb root."""

    def __init__(self, url: str, origin: str) -> None:
        self.url = url
        self.origin = origin
        self.http = httpx.Client(verify=False, trust_env=False, timeout=60)

    def get(self, path: str, accept: str | None = "*/*", headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        """GET a path below the root, or an absolute URL; without an Accept header if `accept` is None."""
        return self.request("GET", path, accept, headers, **options)

    def request(
        self, method: str, path: str, accept: str | None = "*/*", headers: dict[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Send one request."""
        url = path if path.startswith("http") else self.url + path
        request = self.http.build_request(method, url, headers={**(headers or {}), **({"Accept": accept} if accept else {})}, **options)
        if accept is None:
            del request.headers["accept"]
        return self.http.send(request)

    def stow(self, *files: bytes, study: str = "", accept: str | None = JSON, part_type: str = "application/dicom") -> httpx.Response:
        """Store PS3.10 files in one request."""
        boundary = secrets.token_hex(16)
        return self.post_related(related(files, boundary, part_type), boundary, study=study, accept=accept)

    def post_related(
        self,
        body: bytes | Iterator[bytes],
        boundary: str,
        study: str = "",
        accept: str | None = JSON,
        content_type: str = 'multipart/related; type="application/dicom"; boundary={boundary}',
    ) -> httpx.Response:
        """POST a complete body to /studies or /studies/{study}."""
        headers = {"Content-Type": content_type.format(boundary=boundary)}
        return self.request("POST", f"/studies/{study}" if study else "/studies", accept, headers, content=body)

    def store(self, *files: bytes) -> None:
        """Store files and check that all of them were stored."""
        response = self.stow(*files)
        assert response.status_code == 200, response.text

    def search(self, path: str, **options: Any) -> list[Object]:
        """Search; an empty list if the server answers 204."""
        response = self.get(path, JSON, **options)
        assert response.status_code in (200, 204), response.text
        if response.status_code == 204:
            return []
        rows: list[Object] = response.json()
        return rows

    def metadata(self, path: str) -> list[Object]:
        """Return the metadata of a study, series or instance."""
        response = self.get(f"{path}/metadata", JSON)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == JSON
        found: list[Object] = response.json()
        return found

    def parts(self, path: str, accept: str) -> list[Part]:
        """GET a multipart/related answer."""
        return parts_of(self.get(path, accept))


def value(data_set: Object, tag: str) -> Any:
    """Return the first value of an attribute; None if there is none."""
    values = data_set.get(tag, {}).get("Value", [None])
    return values[0]


def items(data_set: Object, tag: str) -> list[Object]:
    """Return the items of a sequence."""
    return list(data_set.get(tag, {}).get("Value", []))


def walk(data_set: Object) -> Iterator[tuple[str, Object]]:
    """Yield every (tag, element) of a DICOM JSON object, at every depth."""
    for tag, element in data_set.items():
        yield tag, element
        if element.get("vr") == "SQ":
            yield from itertools.chain.from_iterable(walk(item) for item in element.get("Value", []))
