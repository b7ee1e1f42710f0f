"""Attributes that rendering needs besides pixels, read from the DICOM JSON of an instance.

Values of the Shared and Per-Frame Functional Groups are resolved for each frame. A lookup table in bulkdata is first known by the path of
its element; `with_bulk` fills in its data.

Source: PS3.3 §C.11.1 (Modality LUT), §C.11.2 (VOI LUT), §C.7.6.3.1.5 (palettes), §C.7.6.16 (functional groups).
"""

import base64
import binascii
import dataclasses
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gantry_standard import errors

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A LUT: descriptor and data.

    Attributes:
        entries: number of entries.
        first: stored value that maps to the first entry.
        bits: bits of an entry.
        data: entries, little endian; or the path of the bulkdata that holds them.
    """

    entries: int
    first: int
    bits: int
    data: bytes | str


@dataclass(frozen=True, slots=True)
class Modality:
    """Modality LUT: a table, or slope and intercept (0028,1053), (0028,1052)."""

    slope: float = 1.0
    intercept: float = 0.0
    table: LookupTable | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the output equals the stored value."""
        return self.table is None and self.slope == 1 and self.intercept == 0


@dataclass(frozen=True, slots=True)
class Window:
    """A window in units after the modality LUT; function as in PS3.18 §8.3.5.1.4: linear, linear-exact, sigmoid."""

    center: float
    width: float
    function: str = "linear"


@dataclass(frozen=True, slots=True)
class Palette:
    """Red, green and blue Palette Color Lookup Tables (0028,1101)-(0028,1223); segmented data is not expanded."""

    red: LookupTable
    green: LookupTable
    blue: LookupTable
    is_segmented: bool


@dataclass(frozen=True, slots=True)
class FrameAttributes:
    """Attributes that one frame is rendered with.

    Attributes:
        window, voi_table: of the instance; where it has both, the table is used.
        is_inverse: Presentation LUT Shape (2050,0020) is INVERSE.
        padding: smallest and largest stored value that is padding, (0028,0120) and (0028,0121).
    """

    modality: Modality = Modality()
    window: Window | None = None
    voi_table: LookupTable | None = None
    is_inverse: bool = False
    padding: tuple[int, int] | None = None
    palette: Palette | None = None


@dataclass(frozen=True, slots=True)
class RenderAttributes:
    """Attributes of all frames of an instance.

    Attributes:
        distinct: attributes that occur, each once.
        of_frame: for each frame index the index into `distinct`; empty where all frames have the same attributes.
    """

    distinct: tuple[FrameAttributes, ...]
    of_frame: tuple[int, ...] = ()

    def frame(self, frame_number: int) -> FrameAttributes:
        """Return the attributes of a frame, number from 1."""
        index = frame_number - 1
        return self.distinct[self.of_frame[index] if index < len(self.of_frame) else 0]

    def bulk_paths(self) -> list[str]:
        """Return the paths of the tables whose data is in bulkdata."""
        return sorted({table.data for frame in self.distinct for table in _tables(frame) if isinstance(table.data, str)})

    def with_bulk(self, values: Mapping[str, bytes]) -> "RenderAttributes":
        """Return the same attributes with the data of tables filled in, by path; a table that is not in `values` is left out."""
        return dataclasses.replace(self, distinct=tuple(_filled(frame, values) for frame in self.distinct))

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory, for caches."""
        tables = sum(len(table.data) for frame in self.distinct for table in _tables(frame))
        return 512 + 512 * len(self.distinct) + 8 * len(self.of_frame) + tables


def _tables(frame: FrameAttributes) -> Iterator[LookupTable]:
    palette = frame.palette
    candidates = [frame.modality.table, frame.voi_table, *([palette.red, palette.green, palette.blue] if palette else [])]
    return (table for table in candidates if table is not None)


def _filled(frame: FrameAttributes, values: Mapping[str, bytes]) -> FrameAttributes:
    def fill(table: LookupTable | None) -> LookupTable | None:
        if table is None or isinstance(table.data, bytes):
            return table
        return dataclasses.replace(table, data=values[table.data]) if table.data in values else None

    palette = frame.palette
    if palette is not None:
        colors = [table for table in (fill(palette.red), fill(palette.green), fill(palette.blue)) if table]
        palette = Palette(colors[0], colors[1], colors[2], palette.is_segmented) if len(colors) == 3 else None
    modality = dataclasses.replace(frame.modality, table=fill(frame.modality.table))
    return dataclasses.replace(frame, modality=modality, voi_table=fill(frame.voi_table), palette=palette)


def read_attributes(dicom_json: bytes) -> RenderAttributes:
    """Read what rendering needs from a DICOM JSON object.

    Args:
        dicom_json: as blob stores it; a byte 0x00 is the placeholder for the base URL of BulkDataURIs.

    Raises:
        CorruptInstance: the text is not a JSON object.
    """
    try:
        root = orjson.loads(dicom_json.replace(b"\0", b""))
    except orjson.JSONDecodeError as error:
        raise errors.CorruptInstance(f"the instance's DICOM JSON cannot be read: {error}") from error
    if not isinstance(root, dict):
        raise errors.CorruptInstance("the instance's DICOM JSON is not an object")
    is_signed = _integer(root, "00280103") == 1
    base = FrameAttributes(
        is_inverse=_text(root, "20500020") == "INVERSE",
        padding=_padding(root, is_signed),
        palette=_palette(root, is_signed),
    )
    base = _voi(root, "", _modality(root, "", base, is_signed), is_signed)
    for number, shared in enumerate(_items(root, "52009229")[:1], 1):
        base = _with_groups(shared, f"52009229/{number}/", base, is_signed)
    return _per_frame(root, base, is_signed)


def _per_frame(root: Item, base: FrameAttributes, is_signed: bool) -> RenderAttributes:
    indices: dict[FrameAttributes, int] = {}
    of_frame = []
    for number, groups in enumerate(_items(root, "52009230"), 1):
        frame = _with_groups(groups, f"52009230/{number}/", base, is_signed)
        of_frame.append(indices.setdefault(frame, len(indices)))
    if len(indices) <= 1:
        return RenderAttributes(tuple(indices) or (base,))
    return RenderAttributes(tuple(indices), tuple(of_frame))


def _with_groups(groups: Item, path: str, base: FrameAttributes, is_signed: bool) -> FrameAttributes:
    """Apply Pixel Value Transformation (0028,9145) and Frame VOI LUT (0028,9132)."""
    for item in _items(groups, "00289145")[:1]:
        base = _modality(item, f"{path}00289145/1/", base, is_signed)
    for item in _items(groups, "00289132")[:1]:
        base = _voi(item, f"{path}00289132/1/", base, is_signed)
    return base


def _modality(item: Item, path: str, base: FrameAttributes, is_signed: bool) -> FrameAttributes:
    for lut in _items(item, "00283000")[:1]:
        table = _table(lut, "00283002", "00283006", f"{path}00283000/1/", is_signed)
        if table:
            return dataclasses.replace(base, modality=Modality(table=table))
    slope, intercept = _number(item, "00281053"), _number(item, "00281052")
    if slope is None and intercept is None:
        return base
    # A slope of 0 would make all pixels equal; writers use it for "no slope"
    return dataclasses.replace(base, modality=Modality(slope or 1.0, intercept or 0.0))


def _voi(item: Item, path: str, base: FrameAttributes, is_signed: bool) -> FrameAttributes:
    for lut in _items(item, "00283010")[:1]:
        # The first value of the descriptor has the sign of the modality LUT's output (PS3.3 §C.11.2.1.1)
        table = _table(lut, "00283002", "00283006", f"{path}00283010/1/", is_signed or base.modality.intercept < 0)
        if table:
            base = dataclasses.replace(base, voi_table=table)
    center, width = _number(item, "00281050"), _number(item, "00281051")
    if center is None or width is None:
        return base
    function = {"SIGMOID": "sigmoid", "LINEAR_EXACT": "linear-exact"}.get(_text(item, "00281056"), "linear")
    if width < 1 and (function == "linear" or width <= 0):
        return base
    return dataclasses.replace(base, window=Window(center, width, function))


def _padding(root: Item, is_signed: bool) -> tuple[int, int] | None:
    value, limit = _integer(root, "00280120"), _integer(root, "00280121")
    if value is None:
        return None
    if is_signed:
        value, limit = _as_signed(value), None if limit is None else _as_signed(limit)
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _palette(root: Item, is_signed: bool) -> Palette | None:
    for is_segmented, data_tags in ((False, ("00281201", "00281202", "00281203")), (True, ("00281221", "00281222", "00281223"))):
        pairs = zip(("00281101", "00281102", "00281103"), data_tags, strict=True)
        tables = [table for table in (_table(root, descriptor, data, "", is_signed) for descriptor, data in pairs) if table]
        if len(tables) == 3:
            return Palette(tables[0], tables[1], tables[2], is_segmented)
    return None


def _table(item: Item, descriptor_tag: str, data_tag: str, path: str, is_signed: bool) -> LookupTable | None:
    descriptor = [number for number in (_as_number(value) for value in _values(item, descriptor_tag)) if number is not None]
    data = _data(item, data_tag, path)
    if len(descriptor) != 3 or data is None:
        return None
    entries, first, bits = (int(number) for number in descriptor)
    # PS3.3 §C.11.1.1: 0 means 65536 entries; with VR SS the number of entries may be read as negative
    return LookupTable((entries & 0xFFFF) or 65536, _as_signed(first) if is_signed else first, bits, data)


def _as_signed(value: int) -> int:
    return value - 65536 if value > 32767 else value


def _data(item: Item, tag: str, path: str) -> bytes | str | None:
    element = item.get(tag)
    if not isinstance(element, dict):
        return None
    if "BulkDataURI" in element:
        return path + tag
    if "InlineBinary" in element:
        try:
            return base64.b64decode(element["InlineBinary"])
        except (binascii.Error, ValueError, TypeError):
            return None
    numbers = [int(number) & 0xFFFF for number in map(_as_number, _values(item, tag)) if number is not None]
    return struct.pack(f"<{len(numbers)}H", *numbers) if numbers else None


def _values(item: Item, tag: str) -> list[Any]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _items(item: Item, tag: str) -> list[Item]:
    # An item that is not an object is counted too, because paths contain item numbers
    return [value if isinstance(value, dict) else {} for value in _values(item, tag)]


def _as_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number - number == 0 else None


def _number(item: Item, tag: str) -> float | None:
    values = _values(item, tag)
    return _as_number(values[0]) if values else None


def _integer(item: Item, tag: str) -> int | None:
    number = _number(item, tag)
    return None if number is None else int(number)


def _text(item: Item, tag: str) -> str:
    values = _values(item, tag)
    return str(values[0]).strip() if values else ""
