"""The calls to one S3 bucket that the store needs, made with the `minio` client. Only this module imports `minio`.

`minio` has no public calls for the single steps of a multipart upload, nor for a conditional PUT. The following six calls are private, so
a new version may change them. `PRIVATE_CALLS` lists them, and a test compares them with the version in `constraints.txt`:

| private call | S3 API | why the public call is not enough | replacement |
|---|---|---|---|
| `_create_multipart_upload` | CreateMultipartUpload | `put_object` completes by itself | boto3 `create_multipart_upload` |
| `_upload_part` | UploadPart | the same | boto3 `upload_part` |
| `_complete_multipart_upload` | CompleteMultipartUpload | the same | boto3 `complete_multipart_upload` |
| `_abort_multipart_upload` | AbortMultipartUpload | `remove_object` removes objects only | boto3 `abort_multipart_upload` |
| `_list_multipart_uploads` | ListMultipartUploads | there is none since version 7 | boto3 `list_multipart_uploads` |
| `_put_object` | PutObject | `put_object` does not accept `If-None-Match` | boto3 `put_object(IfNoneMatch="*")` |

To replace `minio`, rewrite this module; nothing else has to change. Decision 0149.
"""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import minio
import urllib3
from minio.commonconfig import CopySource
from minio.datatypes import Part
from minio.error import MinioException, S3Error

from gantry_standard import errors

PRIVATE_CALLS = (
    "_create_multipart_upload",
    "_upload_part",
    "_complete_multipart_upload",
    "_abort_multipart_upload",
    "_list_multipart_uploads",
    "_put_object",
)
OUT_OF_ROOM = {"XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"}


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise an error of `gantry_standard.errors` instead of an exception of the client.

    Args:
        what: the key, or another name for the message.

    Raises:
        errors.NotFound: there is no such object.
        errors.OutOfResources: the server has no free disk space.
        errors.BadRequest: a range is not within the object.
        errors.Conflict: the object exists, and the request was for a new one.
        errors.Unavailable: the server does not answer, or answered any other error.
    """
    try:
        yield
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchObject"):
            raise errors.NotFound(f"{what}: no such object") from error
        if error.code in OUT_OF_ROOM:
            raise errors.OutOfResources(f"{what}: the S3 server has no free disk space", retry_after_s=60) from error
        if error.code == "InvalidRange":
            raise errors.BadRequest(f"{what}: a range is not within the object") from error
        if error.code == "PreconditionFailed":
            raise errors.Conflict(f"{what} exists") from error
        raise errors.Unavailable(f"{what}: the S3 server answered {error.code}") from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise errors.Unavailable(f"{what}: the S3 server does not answer ({type(error).__name__})") from error


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload that is not completed."""

    key: str
    upload_id: str
    begun: datetime.datetime | None


class BucketClient:
    """One bucket. Every method blocks, may be called from any thread, and raises the errors of `translated`.

    Args:
        endpoint: URL of the server, such as http://minio:9000.
        connections: largest number of connections to the server.
        timeout_s: seconds without a byte after which a call fails.
    """

    def __init__(self, endpoint: str, access_key: str, secret_key: str, bucket: str, connections: int, timeout_s: float) -> None:
        url = urlsplit(endpoint)
        self._bucket = bucket
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=3, read=timeout_s),
            maxsize=connections,
            block=True,
            retries=urllib3.Retry(total=2, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504]),
        )
        self._client: Any = minio.Minio(
            url.netloc, access_key=access_key, secret_key=secret_key, secure=url.scheme == "https", http_client=self._http
        )

    def exists(self) -> bool:
        """Return whether the bucket exists."""
        with translated(f"bucket {self._bucket}"):
            return bool(self._client.bucket_exists(bucket_name=self._bucket))

    def make(self) -> None:
        """Create the bucket if it does not exist."""
        with translated(f"bucket {self._bucket}"):
            try:
                self._client.make_bucket(bucket_name=self._bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload; return its id."""
        with translated(key):
            return str(self._client._create_multipart_upload(self._bucket, key, {"Content-Type": "application/octet-stream"}))

    def upload_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Send an S3 part; return its ETag. `number` counts from 1."""
        with translated(key):
            return str(self._client._upload_part(self._bucket, key, data, None, upload_id, number))

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Complete the object from its S3 parts, in the order of `etags`."""
        with translated(key):
            parts = [Part(number, etag) for number, etag in enumerate(etags, 1)]
            self._client._complete_multipart_upload(self._bucket, key, upload_id, parts)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload; the server removes its parts."""
        with translated(key):
            self._client._abort_multipart_upload(self._bucket, key, upload_id)

    def open_uploads(self, prefix: str) -> Iterator[OpenUpload]:
        """Yield the uploads of keys with a prefix that are not completed."""
        key_marker = id_marker = None
        while True:
            with translated(f"bucket {self._bucket}"):
                page = self._client._list_multipart_uploads(self._bucket, key_marker=key_marker, upload_id_marker=id_marker, prefix=prefix)
            for upload in page.uploads:
                yield OpenUpload(upload.object_name, upload.upload_id, upload.initiated_time)
            if not page.is_truncated:
                return
            key_marker, id_marker = page.next_key_marker, page.next_upload_id_marker

    def put(self, key: str, data: bytes, only_new: bool) -> None:
        """Write an object in one request.

        Raises:
            errors.Conflict: the object exists, and `only_new` is true.
        """
        headers = {"Content-Type": "application/octet-stream"} | ({"If-None-Match": "*"} if only_new else {})
        with translated(key):
            self._client._put_object(self._bucket, key, data, headers)

    def get(self, key: str, offset: int, length: int) -> Any:
        """Return a response whose `read(n)` returns the bytes of a range. The caller closes it and releases its connection."""
        with translated(key):
            return self._client.get_object(bucket_name=self._bucket, object_name=key, offset=offset, length=length)

    def size(self, key: str) -> int:
        """Return the length of an object in bytes."""
        with translated(key):
            return int(self._client.stat_object(bucket_name=self._bucket, object_name=key).size)

    def list(self, prefix: str, after: str) -> Iterator[tuple[str, int]]:
        """Yield keys with a prefix that are greater than `after`, in order, with their sizes in bytes. They are requested page by page."""
        with translated(prefix):
            for entry in self._client.list_objects(bucket_name=self._bucket, prefix=prefix, recursive=True, start_after=after or None):
                if not entry.is_dir:
                    yield entry.object_name, entry.size

    def copy(self, key: str, to: str) -> None:
        """Copy an object on the server."""
        with translated(key):
            source = CopySource(bucket_name=self._bucket, object_name=key)
            self._client.copy_object(bucket_name=self._bucket, object_name=to, source=source)

    def remove(self, key: str) -> None:
        """Remove an object. It is no error if there is no such object."""
        with translated(key):
            self._client.remove_object(bucket_name=self._bucket, object_name=key)

    def close(self) -> None:
        """Close all connections."""
        self._http.clear()
