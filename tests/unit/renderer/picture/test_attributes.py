"""What rendering reads from DICOM JSON."""

import base64
import json
import struct
from typing import Any

import pytest

from gantry_renderer.picture.attributes import LookupTable, Modality, Window, read_attributes
from gantry_standard import errors


def encoded(elements: dict[str, Any]) -> bytes:
    return json.dumps(elements).replace("BASE", "\0").encode()


def values(vr: str, *found: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(found)}


def test_rescale_and_first_window_with_its_function() -> None:
    frame = read_attributes(
        encoded(
            {
                "00281052": values("DS", -1024),
                "00281053": values("DS", "1.0"),
                "00281050": values("DS", 40, 400),
                "00281051": values("DS", 80, 2000),
                "00281056": values("CS", "SIGMOID"),
            }
        )
    ).frame(1)
    assert frame.modality == Modality(1.0, -1024.0)
    assert frame.window == Window(40.0, 80.0, "sigmoid")


@pytest.mark.parametrize("width", [0, -5, 0.5])
def test_window_that_no_formula_takes_is_as_if_absent(width: float) -> None:
    assert read_attributes(encoded({"00281050": values("DS", 1), "00281051": values("DS", width)})).frame(1).window is None


def test_functional_groups_give_each_frame_its_own() -> None:
    def groups(intercept: float, center: float) -> dict[str, Any]:
        return {
            "00289145": values("SQ", {"00281052": values("DS", intercept), "00281053": values("DS", 2)}),
            "00289132": values("SQ", {"00281050": values("DS", center), "00281051": values("DS", 10)}),
        }

    attributes = read_attributes(encoded({"52009230": values("SQ", groups(1, 5), groups(2, 6), groups(1, 5))}))
    assert [attributes.frame(number).modality.intercept for number in (1, 2, 3)] == [1, 2, 1]
    assert [attributes.frame(number).window for number in (1, 2)] == [Window(5, 10), Window(6, 10)]
    assert len(attributes.distinct) == 2


def test_shared_groups_are_for_all_frames() -> None:
    shared = {"00289132": values("SQ", {"00281050": values("DS", 7), "00281051": values("DS", 10)})}
    attributes = read_attributes(encoded({"52009229": values("SQ", shared), "52009230": values("SQ", {}, {})}))
    assert attributes.frame(2).window == Window(7, 10)
    assert attributes.of_frame == ()


def test_table_from_numbers_inline_binary_or_bulkdata() -> None:
    def voi(data: dict[str, Any]) -> bytes:
        return encoded({"00283010": values("SQ", {"00283002": values("US", 2, 65535, 12), "00283006": data}), "00280103": values("US", 1)})

    packed = struct.pack("<2H", 1, 4095)
    table = LookupTable(2, -1, 12, packed)
    assert read_attributes(voi(values("US", 1, 4095))).frame(1).voi_table == table
    assert read_attributes(voi({"vr": "OW", "InlineBinary": base64.b64encode(packed).decode()})).frame(1).voi_table == table
    later = read_attributes(b'{"00283010":' + voi({"vr": "OW", "BulkDataURI": "BASE/x"}).split(b":", 1)[1])
    assert later.bulk_paths() == ["00283010/1/00283006"]
    assert later.with_bulk({"00283010/1/00283006": packed}).frame(1).voi_table == table
    assert later.with_bulk({}).frame(1).voi_table is None


def test_65536_entries_are_written_as_zero() -> None:
    item = {"00283002": values("US", 0, 0, 16), "00283006": values("US", 1)}
    table = read_attributes(encoded({"00283000": values("SQ", item)})).frame(1).modality.table
    assert table is not None
    assert table.entries == 65536


def test_padding_range_is_signed_where_pixels_are() -> None:
    elements = {"00280103": values("US", 1), "00280120": values("US", 63536), "00280121": values("SS", -1900)}
    assert read_attributes(encoded(elements)).frame(1).padding == (-2000, -1900)


def test_what_is_no_number_is_as_if_absent() -> None:
    elements = {"00281052": values("DS", None), "00281050": values("DS", "x"), "00281051": {"vr": "DS"}, "00283010": values("SQ", None)}
    frame = read_attributes(encoded(elements)).frame(1)
    assert frame.modality.is_identity
    assert frame.window is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{"])
def test_what_is_no_json_object_is_corrupt(data: bytes) -> None:
    with pytest.raises(errors.CorruptInstance):
        read_attributes(data)
