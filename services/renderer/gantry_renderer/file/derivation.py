"""Attributes of an instance after lossy compression.

Lossy compression makes a derived instance with its own SOP Instance UID: PS3.3 §C.7.6.1.1.2 requires a new one where the difference may
affect the professional interpretation, which this server cannot exclude. The UID is derived from the UID of the source and the transfer
syntax, so it is the same for every request. Image Type begins with DERIVED. Lossy Image Compression, its Ratio and Method, Derivation
Description, Derivation Code Sequence and Source Image Sequence are written; values of earlier compressions are kept before the new ones.

The ratio is that of the first frame, because it is written before the other frames are encoded; PS3.3 calls it approximate.

Source: PS3.3 §C.7.6.1.1.5, §C.8.12.2, §C.12.4; PS3.16 CID 7203, CID 7202.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from gantry_standard.dicom.part10 import encode_element, encode_item

FORM = 1
"""Part of the derived UID. It must be increased when the same request would give different pixels."""

SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080016, 0x00080018
MEDIA_STORAGE_SOP_INSTANCE_UID = 0x00020003
IMAGE_TYPE, DERIVATION_DESCRIPTION, SOURCE_IMAGE_SEQUENCE = 0x00080008, 0x00082111, 0x00082112
DERIVATION_CODE_SEQUENCE = 0x00089215
LOSSY_IMAGE_COMPRESSION, RATIO, METHOD = 0x00282110, 0x00282112, 0x00282114
_REFERENCED_SOP_CLASS_UID, _REFERENCED_SOP_INSTANCE_UID, _PURPOSE = 0x00081150, 0x00081155, 0x0040A170
_CODE_VALUE, _CODING_SCHEME, _CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_LONGEST_DESCRIPTION = 1024
_NAMESPACE = uuid.UUID("7d2f0a4e-6d0c-5b0e-9a53-0f6ac9b9a1de")

CONSULTED = frozenset(
    (
        SOP_CLASS_UID,
        SOP_INSTANCE_UID,
        IMAGE_TYPE,
        DERIVATION_DESCRIPTION,
        SOURCE_IMAGE_SEQUENCE,
        DERIVATION_CODE_SEQUENCE,
        LOSSY_IMAGE_COMPRESSION,
        RATIO,
        METHOD,
    )
)
"""Elements whose values `elements_of` reads."""


@dataclass(frozen=True, slots=True)
class Compression:
    """A lossy compression.

    Attributes:
        method: Lossy Image Compression Method.
        ratio: uncompressed size of a frame divided by its compressed size; 0 where the stored pixels were lossy and are only decoded.
        transfer_syntax_uid, name: of the result; "" where the stored pixels were lossy.
    """

    method: str
    ratio: float = 0.0
    transfer_syntax_uid: str = ""
    name: str = ""


def derived_uid(sop_instance_uid: str, transfer_syntax_uid: str) -> str:
    """Return the SOP Instance UID of an instance after lossy compression; the same for the same arguments."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{FORM} {sop_instance_uid} {transfer_syntax_uid}').int}"


def elements_of(compression: Compression, values: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the elements that a compression changes, encoded, by tag.

    Args:
        values: of those elements of `CONSULTED` that the instance has; for a sequence its encoded items.
    """
    if not compression.ratio:
        return _flagged(compression, values)
    before = _text(values, SOP_INSTANCE_UID)
    uid = derived_uid(before, compression.transfer_syntax_uid).encode()
    return {
        MEDIA_STORAGE_SOP_INSTANCE_UID: encode_element(MEDIA_STORAGE_SOP_INSTANCE_UID, b"UI", uid),
        IMAGE_TYPE: encode_element(IMAGE_TYPE, b"CS", _derived_type(_text(values, IMAGE_TYPE))),
        SOP_INSTANCE_UID: encode_element(SOP_INSTANCE_UID, b"UI", uid),
        DERIVATION_DESCRIPTION: encode_element(DERIVATION_DESCRIPTION, b"ST", _description(values, compression)),
        SOURCE_IMAGE_SEQUENCE: encode_element(SOURCE_IMAGE_SEQUENCE, b"SQ", values.get(SOURCE_IMAGE_SEQUENCE, b"") + _source(values)),
        DERIVATION_CODE_SEQUENCE: encode_element(
            DERIVATION_CODE_SEQUENCE, b"SQ", values.get(DERIVATION_CODE_SEQUENCE, b"") + _code("113040", "Lossy Compression")
        ),
        LOSSY_IMAGE_COMPRESSION: encode_element(LOSSY_IMAGE_COMPRESSION, b"CS", b"01"),
        RATIO: encode_element(RATIO, b"DS", _appended(values, RATIO, f"{compression.ratio:.2f}")),
        METHOD: encode_element(METHOD, b"CS", _appended(values, METHOD, compression.method)),
    }


def _flagged(compression: Compression, values: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return Lossy Image Compression and its Method where the instance lacks them: decoded pixels do not show that they were lossy."""
    if _text(values, LOSSY_IMAGE_COMPRESSION) == "01":
        return {}
    changes = {LOSSY_IMAGE_COMPRESSION: encode_element(LOSSY_IMAGE_COMPRESSION, b"CS", b"01")}
    if not _text(values, METHOD):
        changes[METHOD] = encode_element(METHOD, b"CS", compression.method.encode())
    return changes


def _text(values: Mapping[int, bytes], tag: int) -> str:
    return values.get(tag, b"").decode("latin-1").strip(" \0")


def _appended(values: Mapping[int, bytes], tag: int, value: str) -> bytes:
    before = _text(values, tag)
    return (f"{before}\\{value}" if before else value).encode("latin-1")


def _derived_type(image_type: str) -> bytes:
    return "\\".join(["DERIVED", *(image_type.split("\\")[1:] or ["PRIMARY"])]).encode("latin-1")


def _description(values: Mapping[int, bytes], compression: Compression) -> bytes:
    # The value stays in the character set of the instance; the added text is ASCII, which every character set contains
    before = values.get(DERIVATION_DESCRIPTION, b"").rstrip(b" \0")
    added = f"Lossy compression: {compression.name}".encode()
    whole = before + b"; " + added if before else added
    return whole if len(whole) <= _LONGEST_DESCRIPTION else before


def _source(values: Mapping[int, bytes]) -> bytes:
    purpose = encode_element(_PURPOSE, b"SQ", _code("121320", "Uncompressed predecessor"))
    class_uid, instance_uid = (_text(values, tag).encode() for tag in (SOP_CLASS_UID, SOP_INSTANCE_UID))
    return encode_item(
        encode_element(_REFERENCED_SOP_CLASS_UID, b"UI", class_uid)
        + encode_element(_REFERENCED_SOP_INSTANCE_UID, b"UI", instance_uid)
        + purpose
    )


def _code(value: str, meaning: str) -> bytes:
    return encode_item(
        encode_element(_CODE_VALUE, b"SH", value.encode())
        + encode_element(_CODING_SCHEME, b"SH", b"DCM")
        + encode_element(_CODE_MEANING, b"LO", meaning.encode())
    )
