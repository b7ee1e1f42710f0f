"""multipart/related from the client's side, whatever the pieces in which it comes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gantry_suite.multipart import BrokenMultipart, PartHeaders, boundary_of, decode, encode_files

BODY = (
    b"--B\r\nContent-Type: application/dicom\r\nContent-Location: http://h/1\r\n\r\nfirst\r\n--Cad\r\n"
    b"\r\n--B\r\nContent-Type: application/dicom\r\n\r\n"
    b"\r\n--B--\r\n"
)


def parts(chunks: list[bytes]) -> list[tuple[dict[str, str], bytes]]:
    """Return the headers and bytes of each part."""
    found: list[tuple[dict[str, str], bytes]] = []
    for piece in decode(chunks, "B"):
        if isinstance(piece, PartHeaders):
            found.append((dict(piece), b""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + bytes(piece))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 1000])
def test_parts_are_the_same_whatever_the_pieces(size: int) -> None:
    assert parts([BODY[at : at + size] for at in range(0, len(BODY), size)]) == [
        ({"content-type": "application/dicom", "content-location": "http://h/1"}, b"first\r\n--Cad\r\n"),
        ({"content-type": "application/dicom"}, b""),
    ]


@pytest.mark.parametrize("end", [0, 5, 30, 80, len(BODY) - 4])
def test_a_body_that_ends_early_is_broken(end: int) -> None:
    with pytest.raises(BrokenMultipart, match="broke off"):
        parts([BODY[:end]])


def test_what_the_reader_of_the_standard_takes_is_taken_and_what_it_refuses_is_broken() -> None:
    folded = b"preamble\n--B \nContent-Type: application/dicom;\n transfer-syntax=*\n\nbytes\n--B--"
    assert parts([folded]) == [({"content-type": "application/dicom; transfer-syntax=*"}, b"bytes")]
    with pytest.raises(BrokenMultipart, match="header line"):
        parts([b"--B\r\nno colon\r\n\r\nx\r\n--B--\r\n"])


def test_more_parts_than_a_store_request_may_have_are_read() -> None:
    number = 100_010
    body = b"--B\r\n\r\n" + b"\r\n--B\r\n\r\n" * (number - 1) + b"\r\n--B--\r\n"
    assert sum(isinstance(piece, PartHeaders) for piece in decode([body], "B")) == number


def test_a_large_part_is_never_held() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"--B\r\nA: b\r\n\r\n"
        for _ in range(100):
            yield bytes(100_000)
        yield b"\r\n--B--"

    assert max(len(piece) for piece in decode(chunks(), "B") if isinstance(piece, memoryview)) <= 100_100


def test_files_become_parts(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"one")
    paths[1].write_bytes(b"")
    headers = {"content-type": "application/dicom"}
    assert parts(list(encode_files(paths, "B"))) == [(headers, b"one"), (headers, b"")]


def test_the_boundary_is_read_from_the_content_type() -> None:
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == "a b"
    for wrong in ("application/json", 'multipart/related; type="application/dicom"', ""):
        with pytest.raises(BrokenMultipart):
            boundary_of(wrong)
