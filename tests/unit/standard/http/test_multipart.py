"""The multipart reader: every tolerance of RFC 2046, at every place where a chunk may end."""

import random
import time
from contextlib import suppress

import pytest

from gantry_standard import errors
from gantry_standard.http.multipart import End, Limits, PartBegin, PartData, PartEnd, Reader, parse_content_type

Parts = list[tuple[dict[str, str], bytes]]


def read(boundary: str, chunks: list[bytes], limits: Limits | None = None) -> Parts:
    """Run a reader over chunks and return (headers, data) per part."""
    reader = Reader(boundary, limits)
    parts: Parts = []
    data: list[bytes] = []
    for chunk in chunks:
        for event in reader.feed(chunk):
            match event:
                case PartBegin(headers):
                    data = []
                    parts.append((headers, b"unfinished"))
                case PartData(view):
                    data.append(bytes(view))
                case PartEnd():
                    parts[-1] = (parts[-1][0], b"".join(data))
                case End():
                    pass
    reader.close()
    return parts


DICOM = {"content-type": "application/dicom"}

PAYLOADS = {
    "plain": (b"--B\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--B--\r\n", [(DICOM, b"abc")]),
    "line break before the first boundary": (b"\r\n--B\r\nContent-Type: application/dicom\r\n\r\nabc\r\n--B--", [(DICOM, b"abc")]),
    "preamble and epilogue": (
        b"read me\r\n\r\nB --C\r\n--B\r\ncontent-type: application/dicom\r\n\r\nabc\r\n--B--\r\nthe end --B\r\n--B\r\n",
        [(DICOM, b"abc")],
    ),
    "line feeds alone": (b"\n--B\nContent-Type:application/dicom\n\nabc\n--B\n\nd\n--B--\n", [(DICOM, b"abc"), ({}, b"d")]),
    "white space after boundaries": (b"--B \t\r\n\r\nabc\r\n--B  \r\n\r\nd\r\n--B-- \r\n", [({}, b"abc"), ({}, b"d")]),
    "no headers": (b"--B\r\n\r\nabc\r\n--B--", [({}, b"abc")]),
    "empty part": (b"--B\r\n\r\n\r\n--B--", [({}, b"")]),
    "empty part whose line break is that of the headers": (b"--B\r\nA: b\r\n\r\n--B--", [({"a": "b"}, b"")]),
    "no parts": (b"--B--", []),
    "folded header": (b"--B\r\nA: b\r\n\tc\r\nD: e\r\n\r\n\r\n--B--", [({"a": "b c", "d": "e"}, b"")]),
    "data that looks like delimiters": (
        b"--B\r\n\r\n\r\n--Bx\r\n--\r\r\n\r\n--\r\n--b--\n--C\n-\r\r\n--B--",
        [({}, b"\r\n--Bx\r\n--\r\r\n\r\n--\r\n--b--\n--C\n-\r")],
    ),
    "data of line breaks": (b"--B\r\n\r\n\r\n\r\n\n\n\r\r\n--B--", [({}, b"\r\n\r\n\n\n\r")]),
    "data that begins with hyphens": (b"--B\r\n\r\n--x\r\n--B--", [({}, b"--x")]),
    "mixed line breaks": (b"--B\n\r\nab\r\n--B\r\n\ncd\n--B--", [({}, b"ab"), ({}, b"cd")]),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_is_split(name: str) -> None:
    payload, parts = PAYLOADS[name]
    assert read("B", [payload]) == parts


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_is_split_the_same_wherever_a_chunk_ends(name: str) -> None:
    payload, parts = PAYLOADS[name]
    for cut in range(len(payload) + 1):
        assert read("B", [payload[:cut], payload[cut:]]) == parts, cut
    for cut in range(len(payload) + 1):
        for second in range(cut, len(payload) + 1):
            assert read("B", [payload[:cut], payload[cut:second], payload[second:]]) == parts, (cut, second)
    assert read("B", [payload[i : i + 1] for i in range(len(payload))]) == parts


def test_random_payloads_come_back_whatever_their_bytes_and_chunks() -> None:
    rng = random.Random(318)
    for _ in range(300):
        alphabet = rng.choice([b"\r\n-Bb \t", bytes(range(256)), b"\r\n--Boundary9"])
        boundary = rng.choice(["B", "Boundary9", "-", "a b"])
        needle = b"\n--" + boundary.encode()
        parts: Parts = []
        while len(parts) < rng.randint(0, 5):
            data = bytes(rng.choices(alphabet, k=rng.randint(0, 200)))
            if needle not in b"\n" + data:
                parts.append(({"x-n": str(len(parts))}, data))
        payload = b"".join(
            b"--" + boundary.encode() + b"\r\nX-N: " + headers["x-n"].encode() + b"\r\n\r\n" + data + b"\r\n" for headers, data in parts
        )
        payload += b"--" + boundary.encode() + b"--"
        chunks = []
        while payload:
            size = rng.choice([1, 2, 3, 7, 64, 1000])
            chunks.append(payload[:size])
            payload = payload[size:]
        assert read(boundary, chunks) == parts


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        pytest.param(b"", "does not contain the boundary", id="nothing"),
        pytest.param(b"--C\r\n\r\nabc\r\n--C--", "does not contain the boundary", id="another boundary"),
        pytest.param(b"--B\r\n\r\nabc", "ends within part 1", id="cut in data"),
        pytest.param(b"--B\r\n\r\nabc\r\n--B", "ends within part 1", id="cut after a delimiter"),
        pytest.param(b"--B\r\n\r\nabc\r\n--B-", "ends within part 1", id="cut in the final delimiter"),
        pytest.param(b"--B\r\n\r\nabc\r\n--B\r\nContent-Ty", "ends within part 1", id="cut in headers"),
        pytest.param(b"--B\r\nno colon\r\n\r\nabc\r\n--B--", "part 1: a header line", id="header without colon"),
        pytest.param(b"--B\r\n: x\r\n\r\nabc\r\n--B--", "part 1: a header line", id="header without name"),
    ],
)
def test_broken_payload_is_refused(payload: bytes, found: str) -> None:
    with pytest.raises(errors.BadRequest, match=found):
        read("B", [payload])


@pytest.mark.parametrize("boundary", ["", " ", "a ", "x" * 1001, "a\r\nb", "ä", "a\tb"])
def test_illegal_boundary_is_refused(boundary: str) -> None:
    with pytest.raises(errors.BadRequest, match="boundary"):
        Reader(boundary)


def test_headers_longer_than_the_limit_are_refused_in_one_chunk_and_in_many() -> None:
    payload = b"--B\r\nX: " + b"y" * 20_000 + b"\r\n\r\nabc\r\n--B--"
    for size in (1 << 20, 100):
        with pytest.raises(errors.BadRequest, match="within 16384 bytes"):
            read("B", [payload[i : i + size] for i in range(0, len(payload), size)])


def test_headers_just_within_the_limit_are_read() -> None:
    value = "y" * 16_000
    assert read("B", [f"--B\r\nX: {value}\r\n\r\nabc\r\n--B--".encode()]) == [({"x": value}, b"abc")]


def test_more_parts_than_the_limit_are_too_large() -> None:
    payload = b"".join(b"--B\r\n\r\nabc\r\n" for _ in range(4)) + b"--B--"
    assert len(read("B", [payload], Limits(parts=4))) == 4
    with pytest.raises(errors.PayloadTooLarge, match="more than 3 parts"):
        read("B", [payload], Limits(parts=3))


def test_data_leaves_as_views_of_the_chunk() -> None:
    reader = Reader("B")
    reader.feed(b"--B\r\n\r\n")
    chunk = bytes(1 << 20)
    events = reader.feed(chunk)
    data = [event.data for event in events if isinstance(event, PartData)]
    assert data[-1].obj is not None
    assert sum(len(view) for view in data) == len(chunk)
    second = bytes(1 << 20)
    [event] = reader.feed(second)
    assert isinstance(event, PartData)
    assert event.data.obj is second


def test_nothing_but_the_beginning_of_a_delimiter_is_held_back() -> None:
    reader = Reader("B" * 70)
    reader.feed(b"--" + b"B" * 70 + b"\r\n\r\n")
    held = 0
    for _ in range(100):
        sent = b"x" * 1000 + b"\r\n--" + b"B" * 69
        out = sum(len(event.data) for event in reader.feed(sent) if isinstance(event, PartData))
        held += len(sent) - out
        assert 0 <= held <= 75


def test_data_passes_at_more_than_two_thirds_of_a_gigabyte_a_second() -> None:
    rng = random.Random(1)
    for chunk in (bytes(1 << 20), rng.randbytes(1 << 20), b"\x10\x00\x2d\x00" * (1 << 18), b"\r\n" * (1 << 19)):
        reader = Reader("4ae17b5d9c3f4f0a8b1c2d3e4f5a6b7c")
        reader.feed(b"--4ae17b5d9c3f4f0a8b1c2d3e4f5a6b7c\r\n\r\n")
        best = 1.0
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(16):
                reader.feed(chunk)
            best = min(best, time.perf_counter() - begin)
        assert best / 16 * 1024 < 1.5, f"{1 / (best / 16 * 1024):.2f} GB/s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("application/dicom", ("application/dicom", {})),
        (
            'Multipart/Related; TYPE="application/dicom"; boundary=abc',
            ("multipart/related", {"type": "application/dicom", "boundary": "abc"}),
        ),
        ("multipart/related;type=application/dicom;boundary=a=b", ("multipart/related", {"type": "application/dicom", "boundary": "a=b"})),
        ('multipart/related ; boundary = "a b;c\\"d" ;', ("multipart/related", {"boundary": 'a b;c"d'})),
        ("multipart/related; boundary=----x'()+_,-./:?", ("multipart/related", {"boundary": "----x'()+_,-./:?"})),
        ("multipart/related; boundary=a; boundary=b", ("multipart/related", {"boundary": "a"})),
        ('a/b; c=""', ("a/b", {"c": ""})),
        ("a/b; c=", ("a/b", {"c": ""})),
    ],
)
def test_content_type_is_split(text: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse_content_type(text) == expected


@pytest.mark.parametrize("text", ["", "dicom", "a/b/c", "a b/c", 'a/b; c="d', "a/b; c", "a/b c=d"])
def test_content_type_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="Content-Type"):
        parse_content_type(text)


@pytest.mark.parametrize(
    "boundary", ["x" * 71, "x" * 1000, "d8c0f1e2-6a1b-4c3d-9e4f-5a6b7c8d9e0f-0a1b2c3d-4e5f-6a7b-8c9d-0e1f2a3b4c5d", 'a"b;c', "a@[b]{c}"]
)
def test_boundary_beyond_the_rfc_is_read(boundary: str) -> None:
    payload = b"--" + boundary.encode() + b"\r\n\r\nabc\r\n--" + boundary.encode() + b"--"
    assert read(boundary, [payload]) == [({}, b"abc")]


@pytest.mark.parametrize(
    "near",
    [b"\n--x-z", b"\n--xz", b"\n--x \tz", b"\r\n--x-", b"\n--x\rz", b"\n-", b"\n"],
    ids=lambda near: near.decode().encode("unicode_escape").decode(),
)
def test_data_full_of_near_delimiters_takes_time_in_proportion(near: bytes) -> None:
    data = near * ((4 << 20) // len(near)) + b"."
    reader, begin, size = Reader("x"), time.thread_time(), 0
    payload = b"--x\r\n\r\n" + data + b"\r\n--x--"
    for position in range(0, len(payload), 64 << 10):
        size += sum(len(event.data) for event in reader.feed(payload[position : position + (64 << 10)]) if isinstance(event, PartData))
    assert size == len(data)
    assert time.thread_time() - begin < 3


@pytest.mark.parametrize(
    "tail",
    [
        "a=" + " " * (64 << 10) + '"',
        'a="' + '\\"' * (32 << 10),
        ";" * (64 << 10),
        "a=b;" * (16 << 10) + '"',
        " " * (64 << 10),
        '"' * (64 << 10),
    ],
)
def test_long_content_type_is_read_or_refused_at_once(tail: str) -> None:
    begin = time.thread_time()
    with suppress(errors.BadRequest):
        parse_content_type("multipart/related; " + tail)
    assert time.thread_time() - begin < 0.05


@pytest.mark.parametrize("text", ['a/b; c="', 'a/b; c="d\\"', 'a/b; c="d"e', 'a/b; c=d"e"', "a/b; c", "a/b; =d", "a/b; c d=e"])
def test_parameter_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="parameter of Content-Type"):
        parse_content_type(text)
