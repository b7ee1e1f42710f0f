"""The private calls of `minio` are those of the version that was tried."""

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import minio
import pytest

from gantry_blob.stores import minio_client, s3

TRIED = "7.2.20"
PARAMETERS = {
    "_create_multipart_upload": ["bucket_name", "object_name", "headers"],
    "_upload_part": ["bucket_name", "object_name", "data", "headers", "upload_id", "part_number"],
    "_complete_multipart_upload": ["bucket_name", "object_name", "upload_id", "parts"],
    "_abort_multipart_upload": ["bucket_name", "object_name", "upload_id"],
    "_list_multipart_uploads": ["bucket_name", "key_marker", "prefix", "upload_id_marker"],
    "_put_object": ["bucket_name", "object_name", "data", "headers"],
}
"""Parameters that are used; the positional ones stand first."""


def test_the_locked_version_is_the_one_whose_private_calls_were_tried() -> None:
    locked = re.search(r"^minio==(.+)$", (Path(__file__).parents[4] / "constraints.txt").read_text(), re.MULTILINE)
    assert locked is not None
    assert locked[1] == version("minio") == TRIED, "try the private calls of minio_client.py on S3, then change TRIED"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_private_call_has_the_parameters_that_are_used(name: str) -> None:
    found = list(inspect.signature(getattr(minio.Minio, name)).parameters)[1:]
    if name == "_list_multipart_uploads":
        assert set(PARAMETERS[name]) <= set(found)
    else:
        assert found[: len(PARAMETERS[name])] == PARAMETERS[name]


def test_no_other_private_call_is_made_and_each_is_described() -> None:
    source = inspect.getsource(minio_client)
    assert set(re.findall(r"self\._client\.(_\w+)", source)) == set(minio_client.PRIVATE_CALLS) == PARAMETERS.keys()
    assert set(re.findall(r"^\| `(_\w+)`", str(minio_client.__doc__), re.MULTILINE)) == PARAMETERS.keys()
    assert not re.search(r"_client\._", inspect.getsource(s3))
