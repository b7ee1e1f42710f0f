"""The records of ZIP archives with uncompressed entries. The size of an entry is known before its bytes, the checksum after them.

    local header, bytes, data descriptor; … ; central directory; end of central directory

Entries and archives above 4 GiB, and archives with more than 65,534 entries, use ZIP64. The functions return bytes and do no I/O.

Source: PKWARE APPNOTE 6.3.10 §4.3 and §4.4.
"""

import struct
from dataclasses import dataclass

_LIMIT = 0xFFFFFFFF
_MAX_ENTRIES = 0xFFFF
_VERSION, _VERSION_ZIP64 = 20, 45
_FLAGS = 1 << 3 | 1 << 11
"""A data descriptor follows the bytes; names are UTF-8."""
_MIDNIGHT_1980 = (0, 1 << 5 | 1)
"""Time and date of every entry, so that the bytes of an archive do not depend on the time."""
_ZIP64_FIELD = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive. Its name is ASCII, with folders separated by "/"."""

    name: str
    size_bytes: int

    @property
    def is_long(self) -> bool:
        """Whether the size does not fit into 32 bits."""
        return self.size_bytes >= _LIMIT

    def local_header(self) -> bytes:
        """Return the record before the bytes. Checksum and sizes are zero; they are in the data descriptor (§4.4.4)."""
        name = self.name.encode("ascii")
        extra = struct.pack("<HHQQ", _ZIP64_FIELD, 16, 0, 0) if self.is_long else b""
        sizes = (_LIMIT, _LIMIT) if self.is_long else (0, 0)
        version = _VERSION_ZIP64 if self.is_long else _VERSION
        fields = (0x04034B50, version, _FLAGS, 0, *_MIDNIGHT_1980, 0, *sizes, len(name), len(extra))
        return struct.pack("<IHHHHHIIIHH", *fields) + name + extra

    def descriptor(self, crc32: int) -> bytes:
        """Return the data descriptor, which follows the bytes."""
        return struct.pack("<IIQQ" if self.is_long else "<IIII", 0x08074B50, crc32, self.size_bytes, self.size_bytes)

    def central_header(self, crc32: int, offset: int) -> bytes:
        """Return the entry of the central directory.

        Args:
            offset: of the local header in the archive.
        """
        name = self.name.encode("ascii")
        longs = ([self.size_bytes, self.size_bytes] if self.is_long else []) + ([offset] if offset >= _LIMIT else [])
        extra = struct.pack(f"<HH{len(longs)}Q", _ZIP64_FIELD, 8 * len(longs), *longs) if longs else b""
        version = _VERSION_ZIP64 if longs else _VERSION
        size = _LIMIT if self.is_long else self.size_bytes
        fields = (version, version, _FLAGS, 0, *_MIDNIGHT_1980, crc32, size, size, len(name), len(extra), 0, 0, 0, 0)
        return struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, *fields, min(offset, _LIMIT)) + name + extra

    @property
    def length(self) -> int:
        """Bytes of local header, file and data descriptor."""
        return len(self.local_header()) + self.size_bytes + len(self.descriptor(0))


def end(entries: int, directory_bytes: int, directory_offset: int) -> bytes:
    """Return the records after the central directory.

    Args:
        entries: number of files.
        directory_bytes: size of the central directory.
        directory_offset: of the central directory in the archive.
    """
    plain = struct.pack(
        "<IHHHHIIH",
        0x06054B50,
        0,
        0,
        min(entries, _MAX_ENTRIES),
        min(entries, _MAX_ENTRIES),
        min(directory_bytes, _LIMIT),
        min(directory_offset, _LIMIT),
        0,
    )
    if entries < _MAX_ENTRIES and directory_bytes < _LIMIT and directory_offset < _LIMIT:
        return plain
    fields = (0x06064B50, 44, _VERSION_ZIP64, _VERSION_ZIP64, 0, 0, entries, entries, directory_bytes, directory_offset)
    zip64 = struct.pack("<IQHHIIQQQQ", *fields)
    return zip64 + struct.pack("<IIQI", 0x07064B50, 0, directory_offset + directory_bytes, 1) + plain


class Measure:
    """Computes the size of an archive in advance."""

    def __init__(self) -> None:
        self._entries = self._offset = self._directory = 0

    def add(self, entry: Entry) -> None:
        """Add the size of an entry. Entries are added in the order of the archive."""
        self._entries += 1
        self._directory += len(entry.central_header(0, self._offset))
        self._offset += entry.length

    @property
    def length(self) -> int:
        """Bytes of the whole archive."""
        return self._offset + self._directory + len(end(self._entries, self._directory, self._offset))
