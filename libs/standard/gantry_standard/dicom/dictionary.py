"""The data dictionary: the VR of an attribute if the bytes do not contain it.

Source: PS3.6 §6 and the private dictionaries, both from pydicom; PS3.5 §A.1 for the choices of Implicit VR.
"""

from collections.abc import Callable
from functools import lru_cache

from gantry_standard.dicom.pydicom_tables import ATTRIBUTES, PRIVATE_ATTRIBUTES, REPEATERS
from gantry_standard.dicom.value_representations import VALUE_REPRESENTATIONS

US_OR_SS = b"xs"
"""Placeholder for US or SS, by Pixel Representation (0028,0103); internal to the scan."""
US_OR_OW = b"xw"
"""Placeholder for LUT Data: US for one entry, else OW; internal to the scan."""

_CHOICES = {
    "OB or OW": b"OW",  # PS3.5 §A.1: Implicit VR means OW
    "US or SS": US_OR_SS,
    "US or OW": US_OR_OW,
    "US or SS or OW": US_OR_OW,
}
_WAVEFORM_BITS_ALLOCATED = 0x54001004
_LUT_DESCRIPTOR = 0x00283002
# Channel Minimum/Maximum Value, Waveform Padding Value, Waveform Data: OB where 8 bits are allocated (PS3.5 §A.1).
_WAVEFORM_VALUES = frozenset((0x54000110, 0x54000112, 0x5400100A, 0x54001010))


def _encoded(vr: str) -> bytes:
    name = _CHOICES.get(vr) or vr.encode("ascii")
    return name if name in VALUE_REPRESENTATIONS or name in (US_OR_SS, US_OR_OW) else b"UN"


STANDARD_VRS: dict[int, bytes] = {int(tag): _encoded(row[0]) for tag, row in ATTRIBUTES.items() if row[0] != "NONE" and tag >= 0x00020000}
"""Tag to VR, or one of the two placeholders above; without the command elements of group 0000."""


def _repeating_groups() -> dict[int, dict[int, bytes]]:
    masks: dict[int, dict[int, bytes]] = {}
    for pattern, row in REPEATERS.items():
        mask = int("".join("0" if digit == "x" else "F" for digit in pattern), 16)
        masks.setdefault(mask, {})[int(pattern.replace("x", "0"), 16)] = _encoded(row[0])
    return masks


_REPEATERS = _repeating_groups()


@lru_cache(maxsize=4096)
def standard_vr(tag: int) -> bytes | None:
    """Return the VR of a standard attribute, repeating groups (50xx, 60xx …) included; None where it is unknown."""
    vr = STANDARD_VRS.get(tag)
    if vr is not None:
        return vr
    if tag >> 16 & 1:
        return b"LO" if 0x10 <= tag & 0xFFFF <= 0xFF else None
    if tag & 0xFFFF == 0:
        return b"UL"
    for mask, rows in _REPEATERS.items():
        if (vr := rows.get(tag & mask)) is not None:
            return vr
    return None


@lru_cache(maxsize=4096)
def private_vr(private_creator: str, tag: int) -> bytes | None:
    """Return the VR of a private attribute (the block number in bits 8 to 15 is ignored); None if it is unknown."""
    rows = PRIVATE_ATTRIBUTES.get(private_creator)
    if rows is None:
        return None
    group, element = f"{tag >> 16:04X}", f"{tag & 0xFF:02X}"
    row = rows.get(f"{group}xx{element}") or rows.get(f"{group.lower()}xx{element.lower()}")
    return _encoded(row[0]) if row else None


def implicit_vr(tag: int, value_of: Callable[[int], bytes | None]) -> bytes:
    """Return the VR of an attribute in Implicit VR; UN if it is unknown.

    Args:
        value_of: returns the value of another attribute of the data set that has been read, little endian.
    """
    vr = standard_vr(tag)
    if vr is None:
        creator = value_of((tag & 0xFFFF0000) | (tag >> 8 & 0xFF)) if tag >> 16 & 1 else None
        private = private_vr(creator.decode("latin-1").strip(" \0"), tag) if creator else None
        return private or b"UN"
    if vr == US_OR_OW:
        descriptor = value_of(_LUT_DESCRIPTOR)
        return b"US" if descriptor and descriptor[:2] == b"\1\0" else b"OW"
    if tag in _WAVEFORM_VALUES:
        return b"OB" if value_of(_WAVEFORM_BITS_ALLOCATED) == b"\x08\0" else b"OW"
    return vr
