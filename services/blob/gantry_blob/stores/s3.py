"""Objects in a bucket of an S3 server (`minio_client`).

A writer sends its bytes as S3 parts of a multipart upload, the last one at `commit`. So a pack that waits for the end of its request
occupies no thread. An object that fits in one part is written with one PUT.
"""

import datetime
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gantry_blob.stores.minio_client import BucketClient, translated
from gantry_blob.stores.port import ObjectEntry, StoreStatus, joined
from gantry_runtime.blob_reader import Ranges, check_object_key, check_ranges, coalesced
from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_standard import errors

GAP_BYTES = 64 << 10
"""Ranges with a gap of at most this many bytes are read with one request. The bytes of the gap are discarded."""

MOST_PARTS = 10_000
ABANDONED = datetime.timedelta(days=1)


class S3Writer:
    """Writes a new object in S3 parts. At most one part is being sent while the next one is filled."""

    def __init__(self, store: "S3Store", key: str) -> None:
        self.key = key
        self.size = 0
        self._store = store
        self._buffer = bytearray()
        self._upload_id = ""
        self._parts: list[Future[str]] = []
        """ETags of the S3 parts, in their order."""
        self._ended = False

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. When a part is full, wait until the previous part is sent."""
        self.size += len(data)
        rest = memoryview(data)
        while len(self._buffer) + len(rest) > self._store.part_bytes:
            room = self._store.part_bytes - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            self._send_part()
        self._buffer += rest

    def flush(self) -> None:
        """Do nothing: S3 parts have a minimum size."""

    def _send_part(self) -> None:
        if not self._upload_id:
            self._upload_id = self._store.begin(self.key)
        if self._parts:
            self._parts[-1].result()
        if len(self._parts) == MOST_PARTS:
            raise errors.OutOfResources(f"{self.key}: more than {MOST_PARTS} parts of {self._store.part_bytes} bytes")
        self._parts.append(self._store.send(self.key, self._upload_id, len(self._parts) + 1, bytes(self._buffer)))
        self._buffer.clear()

    def commit(self) -> None:
        """Send the remaining bytes and complete the object."""
        if not self._upload_id:
            self._store.put(self.key, bytes(self._buffer), replace=True)
        else:
            self._send_part()
            self._store.complete(self.key, self._upload_id, [part.result() for part in self._parts])
        self._buffer = bytearray()
        self._ended = True

    def abort(self) -> None:
        """Abort the multipart upload. If the server does not answer, `clean` removes the parts when they are a day old."""
        if self._ended:
            return
        self._ended = True
        self._buffer = bytearray()
        if self._upload_id:
            for part in self._parts:
                part.cancel()
                part.exception() if not part.cancelled() else None
            self._store.forget(self.key, self._upload_id)


class S3Store:
    """Objects in one bucket, which is created if it does not exist.

    Args:
        endpoint: URL of the server, such as http://minio:9000.
        part_bytes: size of a part of an upload, at least 5 MiB; two are held in memory per upload.
        connections: most connections to the server.
    """

    kind = "s3"

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        part_bytes: int = 8 << 20,
        connections: int = 64,
        timeout_s: float = 30,
    ) -> None:
        self.part_bytes = part_bytes
        self._bucket = bucket
        self._there = False
        self._making = threading.Lock()
        self._senders = ThreadPoolExecutor(max(4, connections // 4), "s3-part")
        self._client = BucketClient(endpoint, access_key, secret_key, bucket, connections, timeout_s)

    def _made(self) -> BucketClient:
        """Return the client; create the bucket before its first use."""
        if not self._there:
            with self._making:
                if not self._there and not self._client.exists():
                    self._client.make()
                self._there = True
        return self._client

    def create(self, key: str) -> S3Writer:
        """Open a writer. Nothing is sent before an S3 part is full."""
        check_object_key(key)
        self._made()
        return S3Writer(self, key)

    def begin(self, key: str) -> str:
        """Begin a multipart upload; return its id."""
        return self._made().begin_upload(key)

    def send(self, key: str, upload_id: str, number: int, data: bytes) -> "Future[str]":
        """Send an S3 part in the background; the future has its ETag. `number` counts from 1."""
        return self._senders.submit(self._client.upload_part, key, upload_id, number, data)

    def complete(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Complete the object from its S3 parts."""
        self._client.complete_upload(key, upload_id, etags)

    def forget(self, key: str, upload_id: str) -> bool:
        """Abort a multipart upload; return whether the server confirmed it."""
        try:
            self._client.abort_upload(key, upload_id)
        except errors.GantryError:
            return False
        return True

    def read(self, key: str, ranges: Ranges) -> Iterator[bytes]:
        """Read ranges; those with gaps of at most GAP_BYTES are read with one request."""
        check_object_key(key)
        groups = _grouped(coalesced(ranges))
        if not groups:
            self.size(key)
            return
        yield from joined(self._chunks(key, groups, ranges))

    def _chunks(self, key: str, groups: list[list[tuple[int, int]]], ranges: Ranges) -> Iterator[bytes]:
        for number, group in enumerate(groups):
            response = self._made().get(key, group[0][0], sum(group[-1]) - group[0][0])
            try:
                if number == 0:
                    check_ranges(key, int(response.headers["Content-Range"].rpartition("/")[2]), ranges)
                at = group[0][0]
                for offset, length in group:
                    for _ in _exactly(key, response, offset - at):
                        pass
                    yield from _exactly(key, response, length)
                    at = offset + length
            finally:
                response.close()
                response.release_conn()

    def size(self, key: str) -> int:
        """Request the length of an object."""
        check_object_key(key)
        return self._made().size(key)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectEntry]:
        """List objects page by page."""
        for key, size_bytes in self._made().list(prefix, after):
            yield ObjectEntry(key, size_bytes)

    def put(self, key: str, data: bytes, replace: bool = False) -> None:
        """Write an object with one PUT; with `If-None-Match: *` unless `replace`."""
        check_object_key(key)
        try:
            self._made().put(key, data, only_new=not replace)
            return
        except errors.Conflict:
            if replace:
                raise
        if self.size(key) != len(data) or b"".join(self.read(key, [(0, len(data))])) != data:
            raise errors.Conflict(f"{key} exists with other bytes")

    def move(self, key: str, to: str) -> None:
        """Copy the object on the server, then remove the old one, because S3 has no rename."""
        check_object_key(key)
        check_object_key(to)
        self._made().copy(key, to)
        self.remove(key)

    def remove(self, key: str) -> None:
        """Remove an object with DELETE."""
        check_object_key(key)
        self._made().remove(key)

    def clean(self) -> int:
        """Abort multipart uploads of packs that began more than a day ago; their writers no longer exist.

        MinIO cannot list uploads by prefix; it removes them itself after a day (`stale_uploads_expiry`).
        """
        return self.clean_before(datetime.datetime.now(datetime.UTC) - ABANDONED)

    def clean_before(self, limit: datetime.datetime, prefix: str = "packs/") -> int:
        """Abort multipart uploads of keys with a prefix that began before `limit`; return how many."""
        old = (upload for upload in self._made().open_uploads(prefix) if upload.begun is not None and upload.begun < limit)
        return sum(self.forget(upload.key, upload.upload_id) for upload in old)

    def status(self) -> StoreStatus:
        """Check whether the bucket exists."""
        try:
            if not self._made().exists():
                self._there = False
                return StoreStatus(False, f"bucket {self._bucket} does not exist")
        except errors.GantryError as error:
            return StoreStatus(False, error.message)
        return StoreStatus(True)

    def close(self) -> None:
        """Close all connections."""
        self._senders.shutdown(wait=True, cancel_futures=True)
        self._client.close()


def _grouped(ranges: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group ranges that follow each other with gaps of at most GAP_BYTES."""
    groups: list[list[tuple[int, int]]] = []
    for offset, length in ranges:
        if groups and 0 <= offset - sum(groups[-1][-1]) <= GAP_BYTES:
            groups[-1].append((offset, length))
        else:
            groups.append([(offset, length)])
    return groups


def _exactly(key: str, response: Any, length: int) -> Iterator[bytes]:
    """Yield exactly `length` bytes of a response."""
    while length:
        with translated(key):
            chunk = response.read(min(length, CHUNK_BYTES))
        if not chunk:
            raise errors.Unavailable(f"{key}: the S3 server ended its response early")
        length -= len(chunk)
        yield chunk
