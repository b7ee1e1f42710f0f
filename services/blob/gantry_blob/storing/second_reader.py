"""The second reader: pydicom in a subprocess, which reads files that the scan finds inconsistent.

    Held                   stores the bytes of a part while they arrive, in case they are needed again
    SecondReaders          limits the processes that run at once, and the requests that may wait for one
    read_otherwise         starts a process, with a time limit
    python -m gantry_blob.storing.second_reader SOURCE TARGET      the process: reads SOURCE, writes TARGET, exits with 0 or 3

pydicom is lenient and may skip data silently. Its result is therefore used only if it accounts for every byte of the data set. Each byte
must belong to a header or a value that pydicom read, in the order of the file. Every item must begin with the tag of an item. Tags must
ascend, and must be standard or valid private tags, because bytes from within a value could be read as elements with arbitrary tags. Files
that pass may have wrong lengths of items, Implicit VR elements in a Big Endian data set, or undefined lengths for VRs that do not allow
them. TARGET has the same elements and values in Explicit VR Little Endian; it is scanned like any other file.

The parser runs in a process of its own because it has 100 modules and reads untrusted bytes. It must not exhaust the memory or the CPU
time of blob, or crash it. Source: PS3.5 §7; decision 0060.
"""

import asyncio
import fcntl
import hashlib
import io
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from gantry_runtime import telemetry
from gantry_runtime.threads import Threads
from gantry_standard.dicom.dictionary import US_OR_SS, implicit_vr, standard_vr
from gantry_standard.dicom.elements import swap_words
from gantry_standard.dicom.file_head import FileHead
from gantry_standard.dicom.limits import Limits, ScanFailure
from gantry_standard.dicom.part10 import (
    ITEM_DELIMITER,
    ITEM_UNDEFINED,
    SEQUENCE_DELIMITER,
    UNDEFINED_LENGTH,
    encode_element,
    encode_element_header,
    encode_file_meta,
)
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntax
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS, Kind

HELD_BYTES = 1 << 20
"""Number of bytes of a part that are held in memory while the scan finds no error. An inconsistency after that is not tried again."""

MEMORY_BYTES = 2 << 30
"""Limit of the address space of the process, in bytes."""

CPU_S = 120
"""Limit of the CPU time of the process in seconds, in case blob dies and cannot end it."""

CONCURRENT = 2
"""Number of processes at once."""

GRACE_S = 1.0
"""Seconds in which a process must be ended after its time limit. A file that still waits then is not tried."""

READ, REFUSED = 0, 3
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_LAST_META_TAG, _FIRST_PRIVATE_GROUP, _FIRST_PRIVATE_ELEMENT = 0x0002FFFF, 0x0009, 0x1000
_PIXEL_DATA, _PIXEL_REPRESENTATION, _BITS_ALLOCATED = 0x7FE00010, 0x00280103, 0x00280100


class Held:
    """Stores the bytes of a part: its first chunks in memory while the scan succeeds, a temporary file after the scan has failed.

    Args:
        most_bytes: the bytes of a longer part are discarded; 0 switches the second reader off.
        directory: for the temporary file; None for the system's directory.
    """

    def __init__(self, most_bytes: int, directory: Path | None) -> None:
        self.size = 0
        self._most_bytes = most_bytes
        self._directory = directory
        self._chunks: list[bytes | memoryview] | None = [] if most_bytes else None
        self._file: IO[bytes] | None = None

    def take(self, chunk: bytes | memoryview, *, is_needed: bool) -> None:
        """Store the next bytes. `is_needed` is true after the scan has failed."""
        if self._chunks is None and self._file is None:
            return
        self.size += len(chunk)
        if self.size > (self._most_bytes if is_needed else min(HELD_BYTES, self._most_bytes)):
            self.forget()
        elif is_needed:
            self._open().write(chunk)
        elif self._chunks is not None:
            self._chunks.append(chunk)

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self._file = named_temporary(self._directory)
            for chunk in self._chunks or ():
                self._file.write(chunk)
            self._chunks = None
        return self._file

    def whole(self) -> Path | None:
        """Return the path of a file with all bytes; None if there were too many, or none."""
        if not self.size or (self._chunks is None and self._file is None):
            return None
        file = self._open()
        file.flush()
        return Path(file.name)

    def forget(self) -> None:
        """Discard all bytes."""
        self._chunks = None
        if self._file is not None:
            self._file.close()
            self._file = None


def named_temporary(directory: Path | None) -> IO[bytes]:
    """Open a temporary file with a name, which the process can open. It is removed when it is closed."""
    file = tempfile.NamedTemporaryFile(dir=directory, prefix="fallback-")  # noqa: SIM115 the caller closes it
    fcntl.flock(file, fcntl.LOCK_EX)  # so that DirectoryStore.clean does not remove it
    return file


class SecondReaders:
    """Runs at most CONCURRENT processes at once, and limits the number of store requests that wait for one.

    Args:
        pool: CONCURRENT threads, each of which waits for one process.
        timeout_s: time limit for one file in seconds.
        most: largest number of store requests that use or wait for a process. Files of further requests are not tried.
    """

    def __init__(self, pool: Threads, timeout_s: float = 20.0, most: int = 32) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._most = most
        self._inside = 0

    async def read(self, source: Path, target: Path, within_s: float) -> bool:
        """Let pydicom read a file; return whether it accounts for every byte (`read_otherwise`).

        Args:
            source: the file to read.
            target: the file to write.
            within_s: time limit in seconds, including the wait for a process. After it the result is False.
        """
        if self._inside >= self._most:
            telemetry.SECOND_READER.labels("queue full").inc()
            return False
        self._inside += 1
        reading = self._pool.run(self._read, source, target, time.monotonic() + within_s)
        try:
            done, _ = await asyncio.wait({reading}, timeout=within_s + GRACE_S)
            outcome = reading.result() if done else "too late"
        finally:
            self._inside -= 1
            reading.cancel()
        telemetry.SECOND_READER.labels(outcome).inc()
        return outcome == "read"

    def _read(self, source: Path, target: Path, end_s: float) -> str:
        """Read a file, in a thread of the pool. `end_s` is the deadline in monotonic time. Return a label of SECOND_READER."""
        if (left_s := end_s - time.monotonic()) <= 0:
            return "too late"
        return "read" if read_otherwise(source, target, min(self._timeout_s, left_s)) else "refused"


def read_otherwise(source: Path, target: Path, timeout_s: float) -> bool:
    """Let pydicom read a file; return whether it accounts for every byte. If so, `target` is a consistent file with the same data set.

    Blocks for at most `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gantry_blob.storing.second_reader", str(source), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == READ


@dataclass(frozen=True, slots=True)
class Identity:
    """Facts about a file that are known without parsing its data set.

    Attributes:
        length: of the file in bytes.
        transfer_syntax_uid: "" if the file does not name one.
        head_length: number of bytes before the data set.
        head_digest, dataset_digest: SHA-256 of the bytes before the data set, and of the data set.
    """

    length: int
    transfer_syntax_uid: str
    head_length: int
    head_digest: bytes
    dataset_digest: bytes


def identify(source: Path, limits: Limits) -> Identity:
    """Return the lengths and digests of a file.

    Raises:
        ScanFailure: preamble and File Meta Information are incomplete.
    """
    head = FileHead(limits.head_bytes)
    with source.open("rb") as file:
        head.data += file.read(limits.head_bytes)
        head.read(is_last=True)
        file.seek(head.length)
        dataset_digest = hashlib.file_digest(file, "sha256").digest()
    head_digest = hashlib.sha256(head.data[: head.length]).digest()
    return Identity(source.stat().st_size, head.transfer_syntax_uid, head.length, head_digest, dataset_digest)


class _Refused(Exception):
    """A byte is not accounted for, or a value cannot be written without guessing."""


class _Tiling:
    """Goes through the elements that pydicom read in the order of the file, checks that every byte belongs to one, and encodes them.

    Args:
        data: the whole file.
        at: offset of the data set.
    """

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._file = io.BytesIO(data)
        self._at = at

    def data_set(self, dataset: Any, us_or_ss: bytes = b"US") -> bytes:
        """Return the elements of a data set or item, encoded, in the order of their tags."""
        values: dict[int, bytes] = {}
        encoded: dict[int, bytes] = {}
        if _PIXEL_REPRESENTATION in dataset:
            us_or_ss = b"SS" if dataset.get_item(_PIXEL_REPRESENTATION).value in (b"\1\0", b"\0\1") else b"US"
        last = _LAST_META_TAG
        for tag in dataset.keys():  # noqa: SIM118 iterating a Dataset itself sorts and converts
            element, number = dataset.get_item(tag, keep_deferred=True), int(tag)
            if number <= last:
                _refuse()
            last = number
            if getattr(element, "is_undefined_length", False) and element.VR == "SQ":
                encoded[number] = self._undefined_sequence(element, number, us_or_ss, is_implicit=dataset.original_encoding[0])
            else:
                encoded[number] = self._raw(self._unconverted(element, dataset), number, values, us_or_ss)
        # Group lengths are omitted: they are retired, and would be wrong.
        return b"".join(encoded[tag] for tag in sorted(encoded) if tag & 0xFFFF)

    def finish(self) -> None:
        """Check that nothing but zeros follows."""
        if self._data[self._at :].strip(b"\0"):
            _refuse()

    def _unconverted(self, element: Any, value: Any) -> Any:
        """Return an element as it was read. pydicom has already converted Specific Character Set."""
        from pydicom.dataelem import RawDataElement
        from pydicom.filereader import data_element_generator

        if isinstance(element, RawDataElement):
            return element
        self._file.seek(self._at)
        return next(data_element_generator(self._file, *value.original_encoding))

    def _raw(self, raw: Any, tag: int, values: dict[int, bytes], us_or_ss: bytes) -> bytes:
        vr, is_long = self._vr(raw, tag, values)
        self._check_tag(tag, is_implicit=raw.VR is None, is_mixed=raw.VR is None and not raw.is_implicit_VR)
        self._header(raw.value_tell, tag, 12 if is_long else 8)
        if vr == US_OR_SS:
            vr = us_or_ss
        value: bytes = raw.value or b""
        if raw.length == UNDEFINED_LENGTH:
            return self._undefined(raw, tag, vr, value)
        if vr == b"SQ":
            return self._defined_sequence(raw, tag, us_or_ss)
        if len(value) != raw.length:
            _refuse()
        self._at += raw.length
        row = VALUE_REPRESENTATIONS[vr]
        if len(value) % row.word:
            vr, row = b"UN", VALUE_REPRESENTATIONS[b"UN"]
        if not raw.is_little_endian and vr != b"UN":
            if tag == _PIXEL_DATA and values.get(_BITS_ALLOCATED) not in (b"\x01\0", b"\x08\0", b"\x10\0"):
                _refuse()
            value = swap_words(value, row.word)
        values[tag] = value
        return encode_element(tag, vr, value)

    def _vr(self, raw: Any, tag: int, values: dict[int, bytes]) -> tuple[bytes, bool]:
        """Return the VR to write, and whether the header in the file has 12 bytes."""
        if raw.VR is None:
            return implicit_vr(tag, values.get), False
        said = str(raw.VR).encode("ascii")
        row = VALUE_REPRESENTATIONS.get(said) or _refuse()
        return said, row.is_long

    @staticmethod
    def _check_tag(tag: int, *, is_implicit: bool, is_mixed: bool) -> None:
        """Refuse an invalid tag. For an Implicit VR element in an Explicit VR data set, also refuse a tag that is not in the dictionary."""
        if standard_vr(tag) is not None:
            return
        is_private_data = tag >> 16 & 1 and tag & 0xFFFF >= _FIRST_PRIVATE_ELEMENT
        if is_mixed or not is_private_data or (is_implicit and tag >> 16 < _FIRST_PRIVATE_GROUP):
            _refuse()

    def _header(self, value_at: int, tag: int, length: int) -> None:
        """Move past the header of an element."""
        if value_at - self._at != length or not self._is_here((tag >> 16, tag & 0xFFFF)):
            _refuse()
        self._at = value_at

    def _is_here(self, tag: tuple[int, int]) -> bool:
        here = self._data[self._at : self._at + 4]
        return here in (struct.pack("<HH", *tag), struct.pack(">HH", *tag))

    def _undefined(self, raw: Any, tag: int, vr: bytes, value: bytes) -> bytes:
        self._at += len(value)
        if not self._takes(_SEQUENCE_END) or not raw.is_little_endian:
            _refuse()
        if value[:4] == struct.pack("<HH", *_ITEM):
            return encode_element_header(tag, vr if vr == b"OW" else b"OB", UNDEFINED_LENGTH) + value + SEQUENCE_DELIMITER
        if VALUE_REPRESENTATIONS[vr].kind not in (Kind.TEXT, Kind.LONG_TEXT):
            _refuse()
        return encode_element(tag, vr, value)

    def _defined_sequence(self, raw: Any, tag: int, us_or_ss: bytes) -> bytes:
        from pydicom.filereader import read_sequence

        end = self._at + raw.length
        items: Sequence[Any] = ()
        if raw.length:
            self._file.seek(self._at)
            items = read_sequence(self._file, raw.is_implicit_VR or raw.VR is None, raw.is_little_endian, raw.length, "iso8859")
        encoded = self._items(items, tag, us_or_ss)
        if self._at != end:
            _refuse()
        return encoded

    def _undefined_sequence(self, element: Any, tag: int, us_or_ss: bytes, *, is_implicit: bool) -> bytes:
        """Encode a sequence of undefined length. pydicom has already read its items."""
        is_short = element.file_tell - self._at == 8
        self._check_tag(tag, is_implicit=is_short, is_mixed=is_short and not is_implicit)
        self._header(element.file_tell, tag, 8 if is_short else 12)
        encoded = self._items(element.value, tag, us_or_ss)
        if not self._takes(_SEQUENCE_END):
            _refuse()
        return encoded

    def _items(self, items: Sequence[Any], tag: int, us_or_ss: bytes) -> bytes:
        encoded = []
        for item in items:
            if item.seq_item_tell != self._at or not self._takes(_ITEM):
                _refuse()
            encoded.append(ITEM_UNDEFINED + self.data_set(item, us_or_ss) + ITEM_DELIMITER)
            if not self._takes(_ITEM_END) and item.is_undefined_length_sequence_item:
                _refuse()
        end = SEQUENCE_DELIMITER if encoded else b""
        return encode_element_header(tag, b"SQ", UNDEFINED_LENGTH if encoded else 0) + b"".join(encoded) + end

    def _takes(self, tag: tuple[int, int]) -> bool:
        """Move past the tag and length of an item or delimiter; return whether it is at the current position."""
        if len(self._data) - self._at < 8 or not self._is_here(tag):
            return False
        self._at += 8
        return True


def _refuse() -> NoReturn:
    raise _Refused


def _rewritten(source: Path) -> Iterator[bytes]:
    """Yield a file with the elements that pydicom reads from `source`.

    Raises:
        _Refused: pydicom does not account for every byte.
    """
    import pydicom

    identity = identify(source, Limits())
    syntax = transfer_syntax(identity.transfer_syntax_uid or EXPLICIT_VR_LITTLE_ENDIAN)
    if syntax.is_deflated or not syntax.is_supported:
        _refuse()
    dataset = pydicom.dcmread(source, force=True)
    tiling = _Tiling(source.read_bytes(), identity.head_length)
    data_set = tiling.data_set(dataset)
    tiling.finish()
    written_as = syntax.uid if syntax.is_encapsulated else EXPLICIT_VR_LITTLE_ENDIAN
    yield encode_file_meta(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), written_as)
    yield data_set


def main(arguments: Sequence[str]) -> int:
    """Read the file of the first argument and write that of the second. Return the exit status."""
    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    source, target = map(Path, arguments)
    try:
        with target.open("wb") as file:
            for chunk in _rewritten(source):
                file.write(chunk)
    except (_Refused, ScanFailure):
        return REFUSED
    return READ


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # without the interpreter's clean-up, which takes time and is not needed
