"""Protobuf's wire format, as far as bytes that are serialised already are put into an outer message, or taken out, without a copy.

Messages put one after another are one message with all their repeated fields.

Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

LENGTH_DELIMITED = 2


def header(field_number: int, length: int) -> bytes:
    """Return what stands before the bytes of a string, bytes or message field.

    Args:
        field_number: 1 to 15, which take one byte.
        length: of the field's bytes.
    """
    if length < 0x80:
        return bytes((field_number << 3 | LENGTH_DELIMITED, length))
    encoded = bytearray((field_number << 3 | LENGTH_DELIMITED,))
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and bytes of each field of a message that has length-delimited fields 1 to 15 only.

    Raises:
        ValueError: it has others, or is cut off.
    """
    at, end = 0, len(data)
    while at < end:
        key = data[at]
        if key & 7 != LENGTH_DELIMITED or key & 0x80:
            raise ValueError(f"byte {at}: a field of wire type {key & 7}, expected {LENGTH_DELIMITED}")
        length = shift = 0
        while True:
            at += 1
            if at == end or shift > 63:
                raise ValueError(f"byte {at}: the length of a field is cut off")
            length |= (data[at] & 0x7F) << shift
            shift += 7
            if not data[at] & 0x80:
                break
        at += 1
        if at + length > end:
            raise ValueError(f"byte {at}: a field of {length} bytes reaches past the end")
        yield key >> 3, data[at : at + length]
        at += length
