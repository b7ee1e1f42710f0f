"""A 1 GB instance passes through without being held in memory."""

import threading
import time
from collections.abc import Iterator

import pytest
from pydicom.dataset import Dataset

from tests.support import instances
from tests.support.dicomweb import OCTETS, DicomWeb
from tests.support.suite import Suite, anonymous_memory

ROWS = COLUMNS = 1024
FRAMES = 500
FRAME_BYTES = ROWS * COLUMNS * 2
LIMIT_BYTES = 150_000_000


class Sampler:
    """Samples RssAnon of processes every 100 ms while the context is open, and keeps the highest."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.highest = dict.fromkeys(pids, 0)
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            for name, pid in self._pids.items():
                self.highest[name] = max(self.highest[name], anonymous_memory(pid))

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def frame(number: int) -> bytes:
    """Return the bytes of a frame: its number in every word."""
    return number.to_bytes(2, "little") * (FRAME_BYTES // 2)


def body(data_set: Dataset, boundary: str) -> Iterator[bytes]:
    """Yield a store request whose Pixel Data is made while it is sent."""
    head = instances.encoded(data_set)
    yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    yield head
    yield b"\xe0\x7f\x10\x00OW\0\0" + (FRAME_BYTES * FRAMES).to_bytes(4, "little")
    for number in range(1, FRAMES + 1):
        yield frame(number)
    yield f"\r\n--{boundary}--\r\n".encode()


@pytest.mark.long
def test_storing_and_reading_a_gigabyte_needs_little_memory(suite: Suite, dicomweb: DicomWeb) -> None:
    data_set = instances.multi_frame(1, NumberOfFrames=FRAMES, Rows=ROWS, Columns=COLUMNS, BitsAllocated=16, BitsStored=16, HighBit=15)
    data_set.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
    del data_set.PixelData
    pids = {name: suite.pid(name) for name in (*suite.gateways(), "blob")}
    begin = time.monotonic()
    with Sampler(pids) as sampler:
        response = dicomweb.http.post(
            f"{dicomweb.url}/studies",
            content=body(data_set, "B"),
            headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=B', "Accept": "application/dicom+json"},
            timeout=300,
        )
        assert response.status_code == 200, response.text
        stored_s = time.monotonic() - begin
        path = instances.resource(data_set)
        (part,) = dicomweb.parts(f"{path}/frames/321", OCTETS)
        assert part.content == frame(321)
        read = 0
        accept = {"Accept": 'multipart/related; type="application/dicom"'}
        with dicomweb.http.stream("GET", dicomweb.url + path, headers=accept, timeout=300) as answer:
            for piece in answer.iter_raw(1 << 20):
                read += len(piece)
        assert read > FRAME_BYTES * FRAMES
    print(
        f"1 GB stored in {stored_s:.1f} s; highest RssAnon: { ({name: f'{size / 1e6:.0f} MB' for name, size in sampler.highest.items()}) }"
    )
    assert max(sampler.highest.values()) < LIMIT_BYTES, sampler.highest
    dicomweb.request("DELETE", instances.study_resource(data_set))
    assert pids == {name: suite.pid(name) for name in pids}
