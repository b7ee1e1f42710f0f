"""Convert lookup tables of the data set to arrays: palettes, Modality and VOI LUTs.

Source: PS3.3 §C.7.6.3.1.5, §C.7.6.3.1.6, §C.7.9.2 (segmented), §C.11.1.1, §C.11.2.1.1.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gantry_renderer.picture.attributes import LookupTable, Palette
from gantry_standard import errors


@lru_cache(16)
def entries_of(table: LookupTable) -> NDArray[np.uint16]:
    """Return the entries of a table that is stored as bytes or as words; a short table is filled up with its last entry.

    Raises:
        NotAcceptable: the table is empty.
    """
    data = table.data if isinstance(table.data, bytes) else b""
    if table.bits <= 8 and len(data) < 2 * table.entries:
        entries = np.frombuffer(data, np.uint8).astype(np.uint16)
    else:
        entries = np.frombuffer(data[: len(data) // 2 * 2], "<u2")
    return _of_length(entries, table.entries)


def _of_length(entries: NDArray[np.uint16], length: int) -> NDArray[np.uint16]:
    if not len(entries):
        raise errors.NotAcceptable("a lookup table of the instance has no data")
    if len(entries) < length:
        entries = np.pad(entries, (0, length - len(entries)), mode="edge")
    return entries[:length]


def scale_of(table: LookupTable, entries: NDArray[np.uint16]) -> int:
    """Return the largest value that an entry may have.

    The bits of the descriptor are increased where an entry needs more: many writers give too small a number.
    """
    greatest = int(entries.max())
    bits = min(max(table.bits, 1), 16)
    if greatest >= 1 << bits:
        bits = greatest.bit_length()
    return int((1 << bits) - 1)


@lru_cache(8)
def colors_of(palette: Palette) -> NDArray[np.uint8]:
    """Return the colours of a palette: uint8 array, shape (entries, 3), RGB."""
    columns = []
    for table in (palette.red, palette.green, palette.blue):
        entries = _of_length(expand_segments(table), table.entries) if palette.is_segmented else entries_of(table)
        columns.append(entries)
    length = min(len(column) for column in columns)
    colors = np.stack([column[:length] for column in columns], axis=-1)
    if palette.red.bits > 8 and int(colors.max()) > 255:
        return (colors >> 8).astype(np.uint8)
    return colors.astype(np.uint8)


def expand_segments(table: LookupTable) -> NDArray[np.uint16]:
    """Expand segmented palette data of discrete (0), linear (1) and indirect (2) segments.

    Raises:
        NotAcceptable: a segment extends beyond the data, or its type is unknown.
    """
    data = table.data if isinstance(table.data, bytes) else b""
    words = np.frombuffer(data, np.uint8) if table.bits <= 8 else np.frombuffer(data[: len(data) // 2 * 2], "<u2")
    out: list[int] = []
    _expand(words.tolist(), words.itemsize, 0, None, out, table.entries)
    return np.array(out, np.uint16)


def _expand(words: list[int], word_bytes: int, position: int, segments: int | None, out: list[int], limit: int) -> None:
    try:
        while position < len(words) and segments != 0 and len(out) < limit:
            kind, length = words[position], words[position + 1]
            position += 2
            if kind == 0:
                if position + length > len(words):
                    raise IndexError
                out.extend(words[position : position + length])
                position += length
            elif kind == 1:
                begin, end = out[-1], words[position]
                out.extend(round(begin + (end - begin) * (step + 1) / length) for step in range(length))
                position += 1
            elif kind == 2 and segments is None:
                # Offset from the first word, in bytes: four bytes, least significant part first
                parts = words[position : position + 4 // word_bytes]
                offset = int.from_bytes(b"".join(part.to_bytes(word_bytes, "little") for part in parts), "little")
                position += len(parts)
                _expand(words, word_bytes, offset // word_bytes, length, out, limit)
            else:
                raise errors.NotAcceptable(f"a segmented palette has a segment of type {kind}; 0, 1 and 2 are known")
            segments = None if segments is None else segments - 1
    except IndexError:
        raise errors.NotAcceptable("a segmented palette ends in the middle of a segment") from None
