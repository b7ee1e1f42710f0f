"""Files with inconsistent structure, as known writers produce them, and the data set that is meant."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.support import hand_made as h

_CHARSET = 0x00080005
PROCEDURE_CODES = 0x00081032
CODE = h.explicit(0x00080100, "SH", b"CODE") + h.explicit(0x00080102, "SH", b"DCM ")
IMPLICIT_CODE = h.implicit(0x00080100, b"CODE") + h.implicit(0x00080102, b"DCM ")
MEANT_CODE = {"00080100": {"vr": "SH", "Value": ["CODE"]}, "00080102": {"vr": "SH", "Value": ["DCM"]}}
TEXT = b"a text that goes on "


@dataclass(frozen=True)
class Broken:
    """A file with new UIDs.

    Attributes:
        make: the file, from the encoder of a data set with its UIDs.
        tag, element: one attribute of its metadata.
    """

    make: Callable[[dict[int, str]], bytes]
    tag: str
    element: dict[str, object]


def _file(uids: dict[int, str], elements: dict[int, bytes], syntax: str = h.EXPLICIT) -> bytes:
    order = ">" if syntax == h.BIG_ENDIAN else "<"
    encode: Callable[[int, bytes], bytes] = (
        h.implicit if syntax == h.IMPLICIT else lambda tag, value: h.explicit(tag, "UI", value, order=order)
    )
    charset = h.implicit(_CHARSET, b"ISO_IR 100") if syntax == h.IMPLICIT else h.explicit(_CHARSET, "CS", b"ISO_IR 100", order=order)
    encoded = {tag: encode(tag, h.even(uid)) for tag, uid in uids.items()} | elements | {_CHARSET: charset}
    return h.file(b"".join(value for _, value in sorted(encoded.items())), syntax)


def _codes(value: bytes, *, length: int | None = None) -> dict[int, bytes]:
    return {PROCEDURE_CODES: h.explicit(PROCEDURE_CODES, "SQ", value, length=length)}


def _implicit_in_big_endian(tag: int, value: bytes) -> bytes:
    return struct.pack(">HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _rows_and_name(uids: dict[int, str]) -> bytes:
    elements = {0x00100010: b"Doe^Jane", 0x00280010: struct.pack(">H", 7)}
    return _file(uids, {tag: _implicit_in_big_endian(tag, value) for tag, value in elements.items()}, h.BIG_ENDIAN)


READ_OTHERWISE = {
    "an item whose length is too small": Broken(
        lambda uids: _file(uids, _codes(h.item(CODE, length=len(CODE) - 4) + h.SEQUENCE_END, length=h.UNDEFINED)),
        "00081032",
        {"vr": "SQ", "Value": [MEANT_CODE]},
    ),
    "two items whose lengths are too small in a sequence whose length is right": Broken(
        lambda uids: _file(uids, _codes(h.item(CODE, length=len(CODE) - 4) + h.item(CODE, length=len(CODE) - 2))),
        "00081032",
        {"vr": "SQ", "Value": [MEANT_CODE, MEANT_CODE]},
    ),
    "an item whose length is too small, Implicit VR": Broken(
        lambda uids: _file(
            uids,
            {
                PROCEDURE_CODES: h.implicit(
                    PROCEDURE_CODES, h.item(IMPLICIT_CODE, length=len(IMPLICIT_CODE) - 4) + h.SEQUENCE_END, length=h.UNDEFINED
                )
            },
            h.IMPLICIT,
        ),
        "00081032",
        {"vr": "SQ", "Value": [MEANT_CODE]},
    ),
    "Implicit VR elements in Big Endian": Broken(_rows_and_name, "00280010", {"vr": "US", "Value": [7]}),
    "a text of undefined length": Broken(
        lambda uids: _file(uids, {0x0040A160: h.explicit(0x0040A160, "UT", TEXT + h.SEQUENCE_END, length=h.UNDEFINED)}),
        "0040A160",
        {"vr": "UT", "Value": [TEXT.decode().rstrip()]},
    ),
}
"""What pydicom reads and can account for every byte of."""

LOST_BY_PYDICOM: dict[str, Callable[[dict[int, str]], bytes]] = {
    "a sequence whose length is too small": lambda uids: _file(uids, _codes(h.item(CODE), length=len(CODE))),
    "a sequence whose length is too large": lambda uids: _file(uids, _codes(h.item(CODE), length=len(CODE) + 16)),
    "an item with another tag": lambda uids: _file(
        uids, _codes(b"\xfe\xff\x01\xe0" + h.item(CODE)[4:] + h.SEQUENCE_END, length=h.UNDEFINED)
    ),
    "the same attribute twice beside a broken item": lambda uids: _file(
        uids,
        _codes(h.item(CODE, length=len(CODE) - 4) + h.SEQUENCE_END, length=h.UNDEFINED)
        | {0x00200010: h.explicit(0x00200010, "SH", b"1 ") * 2},
    ),
    "a broken item, and then cut off": lambda uids: _file(
        uids, _codes(h.item(CODE, length=len(CODE) - 4) + h.SEQUENCE_END, length=h.UNDEFINED)
    )[:-9],
}
"""What pydicom reads too, and loses or invents something of."""
