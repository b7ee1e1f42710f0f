"""Retrieve as a good server of HTTP does it: conditions, ranges, clients that go away or do not read."""

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from pydicom.encaps import encapsulate

from tests.blackbox.test_large_instance import anonymous_memory
from tests.support import instances
from tests.support.dicomweb import AS_STORED, DICOM, EXPLICIT_LE, OCTETS, OCTETS_AS_STORED, DicomWeb, parts_of
from tests.support.instances import ENCAPSULATED
from tests.support.suite import Suite

SINGLE = "application/octet-stream"


@pytest.fixture
def path(dicomweb: DicomWeb) -> str:
    """An instance with three frames in JPEG 2000."""
    data_set = instances.encapsulated("jpeg 2000")
    dicomweb.store(instances.encoded(data_set, ENCAPSULATED["jpeg 2000"]))
    return instances.resource(data_set)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("target", "accept"),
    [
        ("/frames/2", SINGLE),
        ("/frames/2", f"{SINGLE}; transfer-syntax=*"),
        ("/bulkdata/7FE00010", SINGLE),
        ("", "application/dicom; transfer-syntax=*"),
        ("", "application/dicom"),
    ],
    ids=["transcoded frame", "stored frame", "transcoded bulkdata", "stored instance", "transcoded instance"],
)
@pytest.mark.requirement("A-050", "A-051")
def test_ranges_of_a_single_part(dicomweb: DicomWeb, path: str, target: str, accept: str) -> None:
    url = path + target
    whole = dicomweb.get(url, accept)
    body, size, etag = whole.content, len(whole.content), whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, begin, end in (("0-9", 0, 10), ("5-", 5, size), ("-7", size - 7, size), (f"10-{size + 99}", 10, size)):
        response = dicomweb.get(url, accept, {"Range": f"bytes={asked}"})
        assert (response.status_code, response.content) == (206, body[begin:end])
        assert response.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
        assert response.headers["content-length"] == str(end - begin)
        assert response.headers["content-type"] == whole.headers["content-type"]
    response = dicomweb.get(url, accept, {"Range": f"bytes={size}-"})
    assert (response.status_code, response.headers["content-range"]) == (416, f"bytes */{size}")
    assert str(size) in response.text
    for headers in ({"Range": "bytes=0-1,3-4"}, {"Range": "pages=1-2"}, {"Range": "bytes=0-3", "If-Range": '"another"'}):
        response = dicomweb.get(url, accept, headers)
        assert (response.status_code, response.content) == (200, body)
    response = dicomweb.get(url, accept, {"Range": "bytes=0-3", "If-Range": etag})
    assert (response.status_code, response.content) == (206, body[:4])
    response = dicomweb.request("HEAD", url, accept, {"Range": "bytes=0-3"})
    assert (response.status_code, response.content) == (200, b"")


def test_ranges_of_a_frame_that_begins_within_a_byte(dicomweb: DicomWeb) -> None:
    data_set = instances.segmentation()
    dicomweb.store(instances.encoded(data_set))
    url = f"{instances.resource(data_set)}/frames/2"
    whole = dicomweb.get(url, SINGLE).content
    response = dicomweb.get(url, SINGLE, {"Range": "bytes=1-3"})
    assert (response.status_code, response.content, response.headers["content-range"]) == (206, whole[1:4], "bytes 1-3/5")


@pytest.mark.parametrize(
    ("target", "accept"),
    [
        ("", DICOM),
        ("", AS_STORED),
        ("", OCTETS),
        ("/frames/1,2", OCTETS),
        ("/frames/1", SINGLE),
        ("/bulkdata/7FE00010", "*/*"),
        ("/pixeldata", OCTETS),
    ],
)
def test_what_the_client_has_is_not_sent_again(dicomweb: DicomWeb, path: str, target: str, accept: str) -> None:
    first = dicomweb.get(path + target, accept)
    etag = first.headers["etag"]
    bare = etag.removeprefix("W/")
    assert etag.startswith("W/") == ("multipart" in first.headers["content-type"])
    for tags in (etag, bare, f"W/{bare}", f'"other", W/{bare}', "*"):
        response = dicomweb.get(path + target, accept, {"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
    assert dicomweb.get(path + target, accept, {"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.requirement("A-067")
@pytest.mark.parametrize(
    ("alias", "name", "stored"), [("image/x-dicom-rle", "image/dicom-rle", "rle"), ("image/x-jls", "image/jls", "jpeg-ls")]
)
def test_the_old_names_of_media_types_are_understood(dicomweb: DicomWeb, alias: str, name: str, stored: str) -> None:
    data_set = instances.encapsulated(stored)
    dicomweb.store(instances.encoded(data_set, ENCAPSULATED[stored]))
    (part,) = dicomweb.parts(f"{instances.resource(data_set)}/frames/2", f'multipart/related; type="{alias}"')
    assert part.header("Content-Type") == f"{name}; transfer-syntax={ENCAPSULATED[stored]}"
    stream = instances.frame_bitstreams(stored)[1]
    assert part.content in (stream, stream + b"\0")


@pytest.mark.requirement("A-070")
@pytest.mark.parametrize("stored", instances.NATIVE)
def test_nothing_leaves_without_its_vrs(dicomweb: DicomWeb, stored: str) -> None:
    data_set = instances.ct()
    dicomweb.store(instances.encoded(data_set, instances.NATIVE[stored]))
    target = instances.resource(data_set)
    for accept in (DICOM, AS_STORED, f"{DICOM}; transfer-syntax={EXPLICIT_LE}"):
        (part,) = dicomweb.parts(target, accept)
        assert part.transfer_syntax == EXPLICIT_LE
        group_length = int.from_bytes(part.content[140:144], "little")
        # (0008,0005) CS: the data set begins with a VR, in little endian.
        assert part.content[144 + group_length :][:6] == b"\x08\0\x05\0CS"
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2"):
        assert dicomweb.get(target, f"{DICOM}; transfer-syntax={syntax}").status_code == 406
        assert dicomweb.get(f"{target}/frames/1", f"{OCTETS}; transfer-syntax={syntax}").status_code == 406


@pytest.mark.distributed
@pytest.mark.requirement("A-049")
def test_no_answer_has_bulkdata_before_the_metadata_that_names_it(dicomweb: DicomWeb) -> None:
    data_set = instances.with_bulk()
    dicomweb.store(instances.encoded(data_set))
    for path in (instances.resource(data_set), instances.study_resource(data_set)):
        for accept in (DICOM, OCTETS, OCTETS_AS_STORED):
            assert len({part.header("Content-Type") for part in parts_of(dicomweb.get(path, accept))}) == 1


def _flat(value: int, rows: int, columns: int) -> bytes:
    """Return an RLE frame of one value: few bytes that are many pixels."""
    segment = bytes([129, value]) * (rows * columns // 128)
    return (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + segment


def a_long_job(number_of_frames: int, side: int = 1024) -> tuple[str, bytes]:
    """Return the path and the file of an instance that is small as stored, and takes seconds to be transcoded into little more."""
    data_set = instances.multi_frame(1, 16, 128)
    frames = [_flat(number % 256, side, side) for number in range(number_of_frames)]
    data_set.Rows = data_set.Columns = side
    data_set.NumberOfFrames = number_of_frames
    data_set.PixelData = encapsulate(frames)
    data_set["PixelData"].VR = "OB"
    data_set["PixelData"].is_undefined_length = True
    return instances.resource(data_set), instances.encoded(data_set, ENCAPSULATED["rle"])


def jobs_done(suite: Suite, dicomweb: DicomWeb) -> float:
    """Return how many jobs the renderer's processes have ended so far."""
    ports = json.loads((suite.data / "run" / "ports.json").read_text())
    text = dicomweb.get(f"http://127.0.0.1:{ports['renderer_admin']}/metrics").text
    return sum(float(count) for count in re.findall(r"^gantry_render_seconds_count\{.*\} (\S+)$", text, re.MULTILINE))


def seconds_until_steady(read: Callable[[], float], steady_s: float) -> float:
    """Return after how many seconds a number stopped changing: it stayed the same for `steady_s`."""
    begin = changed = time.monotonic()
    value = read()
    while time.monotonic() - changed < steady_s:
        assert time.monotonic() - begin < 30, "it does not stop"
        time.sleep(0.02)
        if (now := read()) != value:
            value, changed = now, time.monotonic()
    return changed - begin


@pytest.mark.distributed
@pytest.mark.parametrize("what", ["instance", "frames"])
def test_a_client_that_goes_away_ends_what_is_done_for_it(suite: Suite, dicomweb: DicomWeb, what: str) -> None:
    """Of a small instance nothing is sent before it is whole; of frames the first are sent while the others are made."""
    number_of_frames = 300
    path, file = a_long_job(number_of_frames)
    dicomweb.store(file)
    before = jobs_done(suite, dicomweb)
    target, accept = path, f"{DICOM}; transfer-syntax={ENCAPSULATED['jpeg 2000']}"
    if what == "frames":
        target, accept = f"{path}/frames/{','.join(map(str, range(1, number_of_frames + 1)))}", 'multipart/related; type="image/jp2"'
    with socket.create_connection(("127.0.0.1", suite.port), 30) as connection:
        connection.sendall(f"GET /dicom-web{target} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode())
        if what == "frames":
            assert connection.recv(12) == b"HTTP/1.1 200"
        end = time.monotonic() + 20
        while jobs_done(suite, dicomweb) == before:
            assert time.monotonic() < end, "the renderer does nothing"
    # None of the frames in the hands of the processes takes longer than that.
    assert seconds_until_steady(lambda: jobs_done(suite, dicomweb), 0.5) < 1
    assert jobs_done(suite, dicomweb) - before < number_of_frames * 0.8
    assert dicomweb.get(f"{path}/frames/1", OCTETS_AS_STORED).status_code == 200


@pytest.mark.distributed
def test_clients_that_do_not_read_cost_little_memory(suite: Suite, dicomweb: DicomWeb) -> None:
    frames, side, clients = 48, 1024, 8
    data_set = instances.multi_frame(frames, side, side)
    dicomweb.store(instances.encoded(data_set))
    path, pids = instances.resource(data_set), [suite.pid(name) for name in suite.gateways()]

    def gateways() -> int:
        return sum(map(anonymous_memory, pids))

    before = gateways()
    highest = before
    with ExitStack() as stack:
        for _ in range(clients):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(30)
            connection.connect(("127.0.0.1", suite.port))
            connection.sendall(f"GET /dicom-web{path} HTTP/1.1\r\nHost: localhost\r\nAccept: {AS_STORED}\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"

        def sampled() -> float:
            nonlocal highest
            highest = max(highest, gateways())
            return gateways() >> 20

        seconds_until_steady(sampled, 1.0)
    assert highest - before < clients * (16 << 20), f"{(highest - before) >> 20} MiB for {clients} clients of {frames} MiB each"
    assert [suite.pid(name) for name in suite.gateways()] == pids
