"""Encodes the header of a protobuf field, and finds the fields of a serialised message, without copying their bytes.

With it serialised messages can be put into an outer message, and taken out. Serialised messages of one type that follow each other are one
message that has the repeated fields of all of them.

Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

LENGTH_DELIMITED = 2


def header(field_number: int, length: int) -> bytes:
    """Return key and length of a string, bytes or message field, as they precede its bytes.

    Args:
        field_number: 1 to 15; the key of a larger one would need more than one byte.
        length: number of bytes of the field.
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
    """Yield number and bytes of each field of a message that has only length-delimited fields with numbers 1 to 15.

    Raises:
        ValueError: the message has other fields, or is truncated.
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
