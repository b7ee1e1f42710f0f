"""The pack: one immutable object with the instances of one store request.

    instance 0    the uploaded file, unchanged
                  its rewritten bytes, if there are any (parts of the upload that may not be sent as stored: PS3.18 §8.7.3)
                  its DICOM JSON, if it is larger than 64 KiB
    instance 1    …
    trailer       PackTrailer (blob.proto): per instance its UIDs, ranges, digests, frame table, DICOM JSON up to 64 KiB
    footer        48 bytes: length of the trailer (unsigned, 8 bytes, little endian), its SHA-256 (32), MAGIC (8, the last is the version)

Offsets in a trailer count from the first byte of the pack. Bytes that no trailer entry refers to belong to parts that failed. A pack is
read from its end: its last 64 KiB usually contain the whole trailer. An object without a footer is not a pack. The format is defined in
decision 0001.
"""

import hashlib
import struct
import time
from dataclasses import dataclass
from functools import lru_cache

from google.protobuf.message import DecodeError

from gantry.blob.v1 import blob_pb2
from gantry_blob.stores.port import ObjectStore, ObjectWriter
from gantry_runtime.rpc import protobuf_fields
from gantry_standard import errors
from gantry_standard.http.random_bits import random_hex

PREFIX = "packs/"
SUFFIX = ".pack"

MAGIC = b"GNTPACK\x01"
FOOTER = struct.Struct("<Q32s8s")
TAIL_BYTES = 64 << 10
HOUR_S = 3_600

_INSTANCES = blob_pb2.PackTrailer.DESCRIPTOR.fields_by_name["instances"].number


@dataclass(frozen=True)
class PackLimits:
    """Limits above which a pack is closed and the next one begins. They are checked between instances, so one instance may exceed them."""

    size_bytes: int = 4 << 30
    instances: int = 1000
    trailer_bytes: int = 16 << 20


def new_key(suffix: str = SUFFIX) -> str:
    """Return a unique key for a pack. Keys sort by their time (UTC, microseconds)."""
    return f"{_key_at(time.time())}-{random_hex(8)}{suffix}"


def time_of(key: str) -> float:
    """Return the time at which a key was created, in seconds since 1970 UTC; 0 if it is not a key of a pack."""
    try:
        return int(key.rpartition("/")[2].partition("-")[0], 16) / 1e6 if key.endswith(SUFFIX) else 0.0
    except ValueError:
        return 0.0


def key_before(age_s: float) -> str:
    """Return a key that is less than all keys of the last `age_s` seconds."""
    return _key_at(time.time() - age_s)


def _key_at(at: float) -> str:
    return f"{PREFIX}{_hour(int(at // HOUR_S))}/{int(at * 1e6):014x}"


@lru_cache(8)
def _hour(number: int) -> str:
    """Return the folder of an hour since 1970. Listing the latest keys reads a whole directory, so a folder per day would be too large."""
    return time.strftime("%Y/%m/%d/%H", time.gmtime(number * HOUR_S))


class PackWriter:
    """Writes a pack. Methods block.

    Args:
        writer: of the object.
        request_id: of the store request; "" for a copy.
        replaces: key of the pack whose instances are copied; "" for a new pack.
    """

    def __init__(self, writer: ObjectWriter, request_id: str, replaces: str = "") -> None:
        self.key = writer.key
        self.instances = 0
        self._writer = writer
        self._trailer: list[bytes] = [
            blob_pb2.PackTrailer(
                request_id=request_id, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), replaces=replaces
            ).SerializeToString()
        ]
        self._trailer_bytes = len(self._trailer[0])

    @property
    def position(self) -> int:
        """Offset of the next byte."""
        return self._writer.size

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes of an instance."""
        self._writer.write(data)

    def add(self, instance: blob_pb2.StoredInstance) -> bytes:
        """Add an instance to the trailer; return it serialised."""
        serialised = instance.SerializeToString()
        # Concatenated messages are one message with the repeated fields of all of them, so the trailer need not be built as one message.
        entry = protobuf_fields.header(_INSTANCES, len(serialised))
        self._trailer += (entry, serialised)
        self._trailer_bytes += len(entry) + len(serialised)
        self.instances += 1
        return serialised

    def is_full(self, limits: PackLimits) -> bool:
        """Return whether the next instance must be written to a new pack."""
        return self.position >= limits.size_bytes or self.instances >= limits.instances or self._trailer_bytes >= limits.trailer_bytes

    def seal(self) -> None:
        """Write trailer and footer. The pack can then be committed."""
        trailer = b"".join(self._trailer)
        self._writer.write(trailer)
        self._writer.write(FOOTER.pack(len(trailer), hashlib.sha256(trailer).digest(), MAGIC))
        self._trailer.clear()

    def flush(self) -> None:
        """Write buffered bytes as far as the store allows."""
        self._writer.flush()

    def commit(self) -> None:
        """Make the pack durable and visible."""
        self._writer.commit()

    def abort(self) -> None:
        """Discard the pack, unless it is committed."""
        self._writer.abort()


def read_trailer(store: ObjectStore, key: str) -> blob_pb2.PackTrailer:
    """Read the trailer of a pack, usually with one read of its last 64 KiB, otherwise with two.

    Raises:
        errors.NotFound: there is no such object.
        errors.CorruptInstance: the object is not a complete pack.
    """
    size = store.size(key)
    tail = read_bytes(store, key, max(0, size - TAIL_BYTES), min(size, TAIL_BYTES))
    if len(tail) < FOOTER.size:
        raise errors.CorruptInstance(f"{key} has {size} bytes and is not a pack")
    length, digest, magic = FOOTER.unpack(tail[-FOOTER.size :])
    if magic != MAGIC:
        raise errors.CorruptInstance(f"{key} ends with {magic.hex()}, expected {MAGIC.hex()}")
    if length > size - FOOTER.size:
        raise errors.CorruptInstance(f"{key}: a trailer of {length} bytes in a pack of {size}")
    if length + FOOTER.size > len(tail):
        data = read_bytes(store, key, size - FOOTER.size - length, length)
    else:
        data = tail[len(tail) - FOOTER.size - length : len(tail) - FOOTER.size]
    if hashlib.sha256(data).digest() != digest:
        raise errors.CorruptInstance(f"{key}: the trailer is not what was written")
    try:
        return blob_pb2.PackTrailer.FromString(data)
    except DecodeError as error:
        raise errors.CorruptInstance(f"{key}: the trailer cannot be read") from error


def read_bytes(store: ObjectStore, key: str, offset: int, length: int) -> bytes:
    """Return the bytes of a range. For short ranges only, because the whole range is held in memory."""
    return b"".join(store.read(key, [(offset, length)]))
