"""Studies service, Retrieve: a study or a series as one ZIP archive, an extension for users who want files.

    INDEX.txt  DICOMDIR  S0001/I0000001  S0001/I0000002  S0002/I0000001 …

The files are the instances as stored. Their names are File IDs, so the unpacked archive is a file-set. The archive is written while it is
sent. DICOMDIR and INDEX.txt are written before and held in memory, about 700 bytes per instance.

Source: PS3.10 §8, PS3.3 Annex F for DICOMDIR; PS3.18 Table 10.4.4-1 has no archive.
"""

import asyncio
import zlib
from array import array
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from gantry.index.v1.index_pb2 import MetadataFragment
from gantry_gateway.answers import bodies
from gantry_gateway.answers.zip_stream import Entry, Measure, end
from gantry_gateway.content import retrieval
from gantry_gateway.content.answer_records import AnswerRecords
from gantry_gateway.content.retrieval import Limit, Target
from gantry_gateway.content.sources import Retrieval
from gantry_gateway.content.stored_content import Content, content_at, read, served_content
from gantry_gateway.http import responses
from gantry_gateway.http.conditional import entity_tag, not_modified
from gantry_gateway.http.request import Request
from gantry_gateway.http.responses import Chunk, Response
from gantry_standard import errors
from gantry_standard.dicom import dicomdir
from gantry_standard.dicom.sop_classes import sop_class_name
from gantry_standard.http.media_types import ZIP
from gantry_standard.http.negotiation import Choice

MAX_FILES = 100_000
"""Most instances of one archive, as its directory is held in memory; more is 413."""

MAX_SERIES = 9_999
"""Most series of one archive, as a File ID has four digits for the series; more is 413."""

PARSED_BYTES = 8 << 20
"""Most bytes of DICOM JSON that are parsed. An instance with more gets a directory record without attributes."""

OFF_LOOP_BYTES = 64 << 10
"""DICOM JSON with more bytes is parsed in a thread. The central directory is sent in chunks of about this size."""

PAUSE_FILES = 256
"""Number of files that are measured before other tasks may run."""


@dataclass(slots=True)
class _Archive:
    """The content of an archive.

    Attributes:
        series: for each instance the number of its series, from 1.
        numbers: for each instance its number in its series, from 1.
        lines: of INDEX.txt, while it is written.
        index: INDEX.txt.
    """

    records: AnswerRecords
    directory: dicomdir.Directory
    series: "array[int]" = field(default_factory=lambda: array("I"))
    numbers: "array[int]" = field(default_factory=lambda: array("I"))
    lines: list[str] = field(default_factory=list)
    index: bytes = b""
    etag: str = ""

    def files(self) -> Iterator[tuple[Entry, Content]]:
        """Yield the entry and the bytes of each instance."""
        for index in range(len(self.records)):
            content = served_content(self.records.stored(index))
            yield Entry(file_id(self.series[index], self.numbers[index]), content.length), content


def file_id(series: int, number: int) -> str:
    """Return the File ID of an instance: components of at most 8 characters (PS3.10 §8.2)."""
    return f"S{series:04d}/I{number:07d}"


async def send_archive(request: Request, target: Target, choices: tuple[Choice, ...]) -> Response:
    """Send a study or a series as an archive.

    Raises:
        errors.NotAcceptable: the client requests a transfer syntax; an archive has the stored ones.
        errors.PayloadTooLarge: there are too many instances, series or bytes.
        errors.Unavailable: the study was changed meanwhile.
    """
    if not any(choice.transfer_syntax in ("", "*") for choice in choices):
        raise errors.NotAcceptable("an archive has the instances as stored; expected application/zip; transfer-syntax=*")
    archive = await _collect(request, target)
    url = target.url(request.base_url)
    if not_modified(request.headers.get("if-none-match", ""), archive.etag):
        return bodies.not_modified(archive.etag, url)
    fields = responses.headers(
        content_type=ZIP,
        content_length=str(await _measured(archive)),
        content_location=url,
        content_disposition=f'attachment; filename="{target.series or target.study}.zip"',
        etag=archive.etag,
        vary="Accept",
        cache_control="private, no-cache",
    )
    if request.method == "HEAD":
        return responses.Immediate(200, fields, [])
    return await bodies.begun(200, fields, _chunks(retrieval.of(request), archive))


async def _collect(request: Request, target: Target) -> _Archive:
    """Request the instances and their metadata from index, and write DICOMDIR and INDEX.txt."""
    tools = retrieval.of(request)
    facts, limit = blake2b(request.base_url.encode(), digest_size=16), Limit(request)
    answer_records = AnswerRecords(tools.records, target.study)
    async with aclosing(retrieval.records_of(request, target)) as records:
        async for record in records:
            if len(answer_records) == MAX_FILES:
                raise errors.PayloadTooLarge(f"an archive has at most {MAX_FILES} instances; request one series, or multipart/related")
            limit.add(served_content(record.stored).length)
            answer_records.add(record, whole=False)
            facts.update(f"{record.version} {record.stored.sop_instance_uid};".encode())
    digest = facts.hexdigest()
    archive = _Archive(answer_records, dicomdir.Directory(f"2.25.{int(digest, 16)}"), etag=entity_tag("zip", digest, weak=True))
    async with aclosing(_described(request, tools, target)) as described:
        await _describe(archive, described)
    archive.index = "".join(archive.lines).encode()
    archive.lines.clear()
    return archive


async def _described(request: Request, tools: Retrieval, target: Target) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """Yield (SOP Instance UID, attributes for DICOMDIR) of each instance, in the order of index."""
    async with aclosing(retrieval.fragments_of(request, target)) as metadata:
        async for fragments in metadata:
            for fragment in fragments:
                yield fragment.sop_instance_uid, await _attributes(tools, fragment)


async def _attributes(tools: Retrieval, fragment: MetadataFragment) -> dict[str, Any]:
    if not fragment.HasField("location"):
        text = fragment.dicom_json
    elif fragment.location.length > PARSED_BYTES:
        return {}
    else:
        async with aclosing(read(tools.reader, [content_at(fragment.location)], _moved)) as chunks:
            text = b"".join([bytes(chunk) async for _, chunk in chunks])
    return await asyncio.to_thread(_parsed, text) if len(text) > OFF_LOOP_BYTES else _parsed(text)


async def _moved(_: int) -> Content:
    raise errors.Unavailable("the metadata of an instance was moved while its archive was written")


def _parsed(dicom_json: bytes) -> dict[str, Any]:
    return dicomdir.picked(orjson.loads(dicom_json.replace(b"\0", b"")))


async def _describe(archive: _Archive, described: AsyncIterator[tuple[str, dict[str, Any]]]) -> None:
    """Add all instances to DICOMDIR and INDEX.txt."""
    records, series_uid = archive.records, ""
    for index in range(len(records)):
        stored = records.stored(index)
        sop_instance_uid, attributes = await anext(described, ("", {}))
        if sop_instance_uid != stored.sop_instance_uid:
            raise errors.Unavailable("the study was changed while its archive was written")
        if index == 0:
            archive.directory.add_study(attributes)
            archive.lines.append(_heading(attributes))
        is_next = stored.series_instance_uid != series_uid
        if is_next:
            series_uid = stored.series_instance_uid
            archive.directory.add_series(attributes)
        series = (archive.series[-1] if archive.series else 0) + is_next
        if series > MAX_SERIES:
            raise errors.PayloadTooLarge(f"an archive has at most {MAX_SERIES} series; request one series")
        archive.series.append(series)
        archive.numbers.append(1 if is_next else archive.numbers[-1] + 1)
        _add_instance(archive, index, attributes, is_next)


def _add_instance(archive: _Archive, index: int, attributes: dict[str, Any], begins_series: bool) -> None:
    stored = archive.records.stored(index)
    name = file_id(archive.series[index], archive.numbers[index])
    kind = dicomdir.record_type(stored.sop_class_uid, has_pixel_data=stored.layout.HasField("pixel_element"))
    archive.directory.add_instance(
        attributes, kind, name, stored.sop_class_uid, stored.sop_instance_uid, stored.layout.wire_transfer_syntax_uid
    )
    if begins_series:
        archive.lines.append(
            f"\nS{archive.series[index]:04d}  series {_text(attributes, '00200011') or '-'}  {_text(attributes, '00080060') or '-'}"
            f"  {stored.series_instance_uid}\n"
        )
    number = _text(attributes, "00200013") or "-"
    archive.lines.append(f"{name}  instance {number}  {sop_class_name(stored.sop_class_uid)}  {stored.sop_instance_uid}\n")


def _heading(attributes: dict[str, Any]) -> str:
    rows = {
        "Patient": " ".join(filter(None, (_text(attributes, "00100010"), _text(attributes, "00100020")))),
        "Study": " ".join(filter(None, (_text(attributes, "00080020"), _text(attributes, "00081030")))),
        "Study Instance UID": _text(attributes, "0020000D"),
    }
    return "".join(f"{name}: {text or '-'}\n" for name, text in rows.items())


def _text(attributes: dict[str, Any], tag: str) -> str:
    """Return the values of an attribute as one line of text."""
    return " ".join(" ".join(dicomdir.texts(attributes.get(tag, {}).get("Value", []))).split())


def _made(archive: _Archive) -> list[tuple[str, list[bytes]]]:
    return [("INDEX.txt", [archive.index]), ("DICOMDIR", list(archive.directory.pieces()))]


async def _measured(archive: _Archive) -> int:
    """Return the number of bytes of the archive, without blocking the event loop."""
    measure = Measure()
    measure.add(Entry("INDEX.txt", len(archive.index)))
    measure.add(Entry("DICOMDIR", archive.directory.length))
    for index, (entry, _) in enumerate(archive.files()):
        measure.add(entry)
        if index % PAUSE_FILES == 0:
            await asyncio.sleep(0)
    return measure.length


async def _chunks(tools: Retrieval, archive: _Archive) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks of the archive."""
    sums = array("I")
    for name, chunks in (("INDEX.txt", [archive.index]), ("DICOMDIR", list(archive.directory.pieces()))):
        body = b"".join(chunks)
        sums.append(zlib.crc32(body))
        entry = Entry(name, len(body))
        yield b"".join((entry.local_header(), body, entry.descriptor(sums[-1])))
    async with aclosing(_files(tools, archive, sums)) as files:
        async for chunk in files:
            yield chunk
    begin = at = 0
    headers = bytearray()
    for index, entry in enumerate(_entries(archive)):
        headers += entry.central_header(sums[index], at)
        at += entry.length
        if len(headers) > OFF_LOOP_BYTES:
            begin += len(headers)
            yield bytes(headers)
            headers.clear()
    yield bytes(headers) + end(len(sums), begin + len(headers), at)


def _entries(archive: _Archive) -> Iterator[Entry]:
    yield Entry("INDEX.txt", len(archive.index))
    yield Entry("DICOMDIR", archive.directory.length)
    for entry, _ in archive.files():
        yield entry


async def _files(tools: Retrieval, archive: _Archive, sums: "array[int]") -> AsyncGenerator[Chunk, None]:
    """Yield the files with their headers and descriptors; append the checksum of each file to `sums`."""

    async def relocate(index: int) -> Content:
        return served_content((await archive.records.present(index)).stored)

    entries: deque[Entry] = deque()

    def contents() -> Iterator[Content]:
        for entry, content in archive.files():
            entries.append(entry)
            yield content

    current, check_sum, descriptor = -1, 0, b""
    async with aclosing(read(tools.reader, contents(), relocate)) as chunks:
        async for index, chunk in chunks:
            if index != current:
                if current >= 0:
                    sums.append(check_sum)
                    descriptor = entries.popleft().descriptor(check_sum)
                current, check_sum = index, 0
                yield descriptor + entries[0].local_header()
            check_sum = zlib.crc32(chunk, check_sum)
            yield chunk
    sums.append(check_sum)
    yield entries.popleft().descriptor(check_sum)
