"""The pack: one immutable object that holds the instances of one store request.

    instance 0    the uploaded file, byte for byte
                  its rendition, if it has one (what may not leave as stored: PS3.18 §8.7.3)
                  its DICOM JSON, if that is above 64 KiB
    instance 1    …
    trailer       PackTrailer (blob.proto): per instance its UIDs, places, digests, frame table, DICOM JSON up to 64 KiB
    footer        48 bytes: length of the trailer (unsigned, 8 bytes, little endian), its SHA-256 (32), MAGIC (8, the last is the version)

Ranges in a trailer count from the first byte of the pack. Bytes that no trailer entry names are those of parts that failed. A pack is read
from its tail: its last 64 KiB mostly hold all of the trailer. Without a footer an object is no pack. The format is decision 0001.
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
    """When a pack closes and the next begins; looked at between instances, so one instance may pass them."""

    size_bytes: int = 4 << 30
    instances: int = 1000
    trailer_bytes: int = 16 << 20


def new_key(suffix: str = SUFFIX) -> str:
    """Return a key that nobody else has, and that sorts by time (UTC, microseconds)."""
    return f"{_key_at(time.time())}-{random_hex(8)}{suffix}"


def time_of(key: str) -> float:
    """Return when a key was made, seconds since 1970; 0 where it is none of ours."""
    try:
        return int(key.rpartition("/")[2].partition("-")[0], 16) / 1e6 if key.endswith(SUFFIX) else 0.0
    except ValueError:
        return 0.0


def key_before(age_s: float) -> str:
    """Return what all keys made since `age_s` seconds ago sort above."""
    return _key_at(time.time() - age_s)


def _key_at(at: float) -> str:
    return f"{PREFIX}{_hour(int(at // HOUR_S))}/{int(at * 1e6):014x}"


@lru_cache(8)
def _hour(number: int) -> str:
    """Return the folder of an hour since 1970. A directory is read as a whole to list its latest keys, so it must not be a whole day's."""
    return time.strftime("%Y/%m/%d/%H", time.gmtime(number * HOUR_S))


class PackWriter:
    """A pack while it is written. Methods block."""

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
        """Name an instance in the trailer; return it serialised."""
        serialised = instance.SerializeToString()
        # Messages put one after another are one message with all their repeated fields: no need to build it as a whole.
        entry = protobuf_fields.header(_INSTANCES, len(serialised))
        self._trailer += (entry, serialised)
        self._trailer_bytes += len(entry) + len(serialised)
        self.instances += 1
        return serialised

    def is_full(self, limits: PackLimits) -> bool:
        """Whether the next instance belongs into the next pack."""
        return self.position >= limits.size_bytes or self.instances >= limits.instances or self._trailer_bytes >= limits.trailer_bytes

    def seal(self) -> None:
        """Write trailer and footer. The pack can then be committed."""
        trailer = b"".join(self._trailer)
        self._writer.write(trailer)
        self._writer.write(FOOTER.pack(len(trailer), hashlib.sha256(trailer).digest(), MAGIC))
        self._trailer.clear()

    def flush(self) -> None:
        """Keep little in memory until the commit."""
        self._writer.flush()

    def commit(self) -> None:
        """Make the pack durable and visible."""
        self._writer.commit()

    def abort(self) -> None:
        """Leave nothing, unless it is committed."""
        self._writer.abort()


def read_trailer(store: ObjectStore, key: str) -> blob_pb2.PackTrailer:
    """Read what a pack ends with: mostly one read of its tail, else a second.

    Raises:
        errors.NotFound: there is no such object.
        errors.CorruptInstance: it is no complete pack.
    """
    size = store.size(key)
    tail = read_bytes(store, key, max(0, size - TAIL_BYTES), min(size, TAIL_BYTES))
    if len(tail) < FOOTER.size:
        raise errors.CorruptInstance(f"{key}: {size} bytes are no pack")
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
    """Read a range that is known to be short."""
    return b"".join(store.read(key, [(offset, length)]))
