"""Archives: zipfile reads what was written, also above 4 GiB and 65,535 entries."""

import io
import zipfile
import zlib
from pathlib import Path

import pytest

from gantry_gateway.answers.zip_stream import Entry, Measure, end


def archive(files: dict[str, bytes]) -> bytes:
    """Return an archive of files."""
    body, directory = io.BytesIO(), bytearray()
    for name, data in files.items():
        entry, crc32, offset = Entry(name, len(data)), zlib.crc32(data), body.tell()
        body.write(entry.local_header() + data + entry.descriptor(crc32))
        directory += entry.central_header(crc32, offset)
    return body.getvalue() + bytes(directory) + end(len(files), len(directory), body.tell())


@pytest.mark.parametrize("count", [0, 1, 3, 65_535])
def test_what_was_written_is_read(count: int) -> None:
    files = {f"S{number:06d}/I{number:07d}": b"x" * (number % 5) for number in range(count)}
    written = archive(files)
    measure = Measure()
    for name, data in files.items():
        measure.add(Entry(name, len(data)))
    assert measure.length == len(written)
    with zipfile.ZipFile(io.BytesIO(written)) as read:
        assert read.namelist() == list(files)
        assert read.testzip() is None if count < 10 else len(read.infolist()) == count


def test_entries_beyond_4_gib_are_found(tmp_path: Path) -> None:
    long, short = Entry("LONG", 5 << 30), Entry("SHORT", 5)
    measure = Measure()
    with (tmp_path / "long.zip").open("wb") as file:
        file.write(long.local_header())
        file.seek(5 << 30, io.SEEK_CUR)  # a hole
        file.write(long.descriptor(0))
        offset = file.tell()
        file.write(short.local_header() + b"hello" + short.descriptor(zlib.crc32(b"hello")))
        begin = file.tell()
        directory = long.central_header(0, 0) + short.central_header(zlib.crc32(b"hello"), offset)
        file.write(directory + end(2, len(directory), begin))
        for entry in (long, short):
            measure.add(entry)
        assert measure.length == file.tell()
    with zipfile.ZipFile(tmp_path / "long.zip") as read:
        assert read.getinfo("LONG").file_size == 5 << 30
        assert read.read("SHORT") == b"hello"
