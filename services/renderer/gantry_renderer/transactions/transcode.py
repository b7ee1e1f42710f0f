"""Transcode frames and whole instances to another transfer syntax, frame by frame.

A transcoded instance has three parts: the head with changed elements, a new pixel element, and the unchanged elements after it. Frames are
transcoded in parallel and sent in order. At most one frame per worker and one more are in memory.

Source: PS3.18 §8.7.3.5, §10.4; PS3.5 §8.2, §A.4.
"""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gantry_renderer.codecs import coding
from gantry_renderer.codecs.samples import frame_bits
from gantry_renderer.codecs.table import CODECS, REWRITES
from gantry_renderer.file import head
from gantry_renderer.file.derivation import Compression
from gantry_renderer.transactions.flights import Flights
from gantry_renderer.transactions.instances import Instance, read, read_frame, run_with_frame
from gantry_renderer.workers.pool import Admission, Pool
from gantry_runtime.blob_reader import BlobReader
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.rpc.channels import CHUNK_BYTES
from gantry_standard import errors
from gantry_standard.dicom.part10 import (
    SEQUENCE_DELIMITER,
    UNDEFINED_LENGTH,
    encode_element,
    encode_element_header,
    encode_item_header,
)
from gantry_standard.dicom.scanned import PixelDescription
from gantry_standard.dicom.transfer_syntaxes import transfer_syntax

T = TypeVar("T")

MAX_ELEMENT_BYTES = 2**32 - 2
MAX_HEAD_BYTES = 256 << 20
SMALL_HEAD_BYTES = 32 << 10
"""Heads up to this size are patched in this process (0.5 ms); larger ones are patched in a worker."""

_PIXEL_DATA = 0x7FE00010
_PHOTOMETRIC_INTERPRETATION = 0x00280004
_PLANAR_CONFIGURATION = 0x00280006


@dataclass(frozen=True, slots=True)
class Plan:
    """How stored frames are converted to a transfer syntax.

    Attributes:
        is_copy: frames are sent as stored.
        result: pixel description of the frames that are sent.
        decoded: pixel description of the decoded frames, before they are encoded.
    """

    target_uid: str
    is_copy: bool
    result: PixelDescription
    decoded: PixelDescription


def plan(instance: Instance, target_uid: str) -> Plan:
    """Return how the frames of an instance are converted to a transfer syntax.

    Raises:
        NotAcceptable: they cannot be converted; the message lists the transfer syntaxes that are available.
    """
    source_uid, description = instance.transfer_syntax_uid, instance.description
    if source_uid == target_uid:
        return Plan(target_uid, True, description, description)
    if instance.number_of_frames == 0:
        _require_known(target_uid)
        return Plan(target_uid, True, description, description)
    if (source_uid, target_uid) in REWRITES:
        return Plan(target_uid, False, description, description)
    coding.require_decodable(source_uid, description)
    decoded = coding.decoded_description(source_uid, description)
    coding.require_encodable(target_uid, decoded)
    if coding.is_native(source_uid) and coding.is_native(target_uid):
        return Plan(target_uid, True, description, description)
    return Plan(target_uid, False, coding.encoded_description(target_uid, decoded), decoded)


def _require_known(target_uid: str) -> None:
    if target_uid not in coding.encodes():
        raise errors.NotAcceptable(f"{target_uid} cannot be produced; available are {', '.join(coding.encodes())}")


class Transcoding:
    """Transcodes frames and instances; transcoded frames are cached."""

    def __init__(self, reader: BlobReader, pool: Pool, admission: Admission, cache: ByteBoundedCache[bytes]) -> None:
        self._reader = reader
        self._pool = pool
        self._admission = admission
        self._cache = cache
        self._flights = Flights()

    async def frames(self, instance: Instance, frame_numbers: Iterable[int], target_uid: str) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield (frame number, bytes) in the order of `frame_numbers`: bit streams without item headers, or native values in little endian.

        Raises:
            NotFound: the instance has fewer frames.
            NotAcceptable: a frame cannot be decoded, or cannot be encoded to the target.
            Overloaded: the limit of concurrent transcodings is reached.
        """
        numbers = list(frame_numbers)
        for number in numbers:
            if not 1 <= number <= instance.number_of_frames:
                raise errors.NotFound(f"frame {number} of {instance.name}: the instance has {instance.number_of_frames} frames")
        with self._admission():
            async with aclosing(self._in_order(instance, numbers, plan(instance, target_uid))) as transcoded:
                async for number, data in transcoded:
                    yield number, data

    async def instance(self, instance: Instance, target_uid: str) -> AsyncGenerator[bytes, None]:
        """Yield a PS3.10 file in chunks of at most 1 MiB. The first chunk is yielded when the first frame is ready.

        Raises:
            NotAcceptable: a frame cannot be decoded or encoded to the target, or the pixel data would exceed 2^32-2 bytes.
            Overloaded: the limit of concurrent transcodings is reached.
        """
        with self._admission():
            planned = plan(instance, target_uid)
            if instance.transfer_syntax_uid == target_uid:
                pieces = self._ranges(instance, _wire(instance))
            elif instance.number_of_frames == 0:
                pieces = self._without_pixels(instance, planned)
            else:
                pieces = self._with_pixels(instance, planned)
            async with aclosing(_chunks(pieces)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _with_pixels(self, instance: Instance, planned: Plan) -> AsyncGenerator[bytes, None]:
        is_native = coding.is_native(planned.target_uid)
        total_bits = instance.number_of_frames * frame_bits(planned.result)
        if is_native and (total_bits + 15) // 16 * 2 > MAX_ELEMENT_BYTES:
            raise errors.NotAcceptable(
                f"pixel data of {instance.name} would have {total_bits // 8} bytes in {planned.target_uid}; "
                f"{MAX_ELEMENT_BYTES} are possible. It is available as stored, in {instance.transfer_syntax_uid}"
            )
        before, after = _around_pixels(instance)
        numbers = range(1, instance.number_of_frames + 1)
        async with aclosing(self._in_order(instance, numbers, planned)) as frames:
            first = await anext(frames)
            compression = await self._compression(instance, planned, len(first[1]))
            yield await self._head(instance, before, planned, compression)
            write = _native_element if is_native else _encapsulated_element
            async with aclosing(write(_data_of(first, frames), planned.result, instance.number_of_frames)) as pieces:
                async for piece in pieces:
                    yield piece
        async for tail in self._ranges(instance, after):
            yield tail

    async def _without_pixels(self, instance: Instance, planned: Plan) -> AsyncGenerator[bytes, None]:
        yield await self._head(instance, _wire(instance), planned, None)

    async def _compression(self, instance: Instance, planned: Plan, first_bytes: int) -> Compression | None:
        """Return the lossy compression that the instance must declare: that of the target, or one of the stored frames; else None."""
        source_uid, target_uid = instance.transfer_syntax_uid, planned.target_uid
        if planned.is_copy or (source_uid, target_uid) in REWRITES:
            return None
        target = CODECS[target_uid]
        if target.loss:
            ratio = (frame_bits(planned.decoded) + 7) // 8 / max(1, first_bytes)
            return Compression(target.loss, max(ratio, 0.01), target_uid, target.name)
        if not transfer_syntax(source_uid).is_lossy:
            return None
        method = coding.method_of_loss(source_uid, await read_frame(self._reader, instance, 1))
        return Compression(method) if method else None

    async def _head(self, instance: Instance, ranges: list[tuple[int, int]], planned: Plan, compression: Compression | None) -> bytes:
        if sum(length for _, length in ranges) > MAX_HEAD_BYTES:
            raise errors.NotAcceptable(f"{instance.name} has more than {MAX_HEAD_BYTES} bytes before its pixel data")
        stored = await read(self._reader, instance.object_key, ranges)
        arguments = (stored, planned.target_uid, _changes(instance, planned.result), compression)
        if len(stored) <= SMALL_HEAD_BYTES:
            return head.patch(*arguments)
        changed: bytes = await self._pool.run("patch_head", *arguments)
        return changed

    async def _ranges(self, instance: Instance, ranges: list[tuple[int, int]]) -> AsyncGenerator[bytes, None]:
        if not ranges:
            return
        try:
            async for piece in self._reader.read(instance.object_key, ranges):
                yield bytes(piece)
        except errors.NotFound as error:
            raise errors.Unavailable("the bytes of the instance were moved a moment ago") from error

    def _in_order(self, instance: Instance, numbers: Iterable[int], planned: Plan) -> AsyncGenerator[tuple[int, bytes], None]:
        # One frame more than there are workers: it is read while the workers decode
        return in_order(numbers, lambda number: self._frame(instance, number, planned), self._pool.size + 1)

    async def _frame(self, instance: Instance, frame_number: int, planned: Plan) -> bytes:
        if planned.is_copy:
            return await read_frame(self._reader, instance, frame_number)
        key = ("frame", instance.key, frame_number, planned.target_uid)
        data = self._cache.get(key)
        if data is None:
            data = await self._flights.share(key, lambda: self._transcode(key, instance, frame_number, planned))
        return data

    async def _transcode(self, key: Hashable, instance: Instance, frame_number: int, planned: Plan) -> bytes:
        try:
            data: bytes = await run_with_frame(self._reader, self._pool, "transcode", instance, frame_number, planned.target_uid)
        except errors.NotAcceptable as error:
            raise errors.NotAcceptable(f"frame {frame_number} of {instance.name}: {error.message}") from error
        self._cache.put(key, data)
        return data


async def in_order(
    numbers: Iterable[int], work: Callable[[int], Coroutine[Any, Any, T]], window: int
) -> AsyncGenerator[tuple[int, T], None]:
    """Yield (number, result) in the order of `numbers`; at most `window` calls of `work` run or wait to be yielded."""
    tasks: deque[tuple[int, asyncio.Task[T]]] = deque()
    try:
        for number in numbers:
            tasks.append((number, asyncio.create_task(work(number))))
            if len(tasks) >= window:
                result = await tasks[0][1]
                yield tasks.popleft()[0], result
        while tasks:
            result = await tasks[0][1]
            yield tasks.popleft()[0], result
    finally:
        for _, task in tasks:
            task.cancel()
        await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)


async def _data_of(first: tuple[int, bytes], others: AsyncIterator[tuple[int, bytes]]) -> AsyncGenerator[bytes, None]:
    yield first[1]
    async for _, data in others:
        yield data


async def _native_element(
    frames: AsyncIterator[bytes], description: PixelDescription, number_of_frames: int
) -> AsyncGenerator[bytes, None]:
    """Yield a native Pixel Data element; frames of 1-bit pixels follow each other without padding (PS3.5 §8.1.1)."""
    bits = frame_bits(description)
    length = (number_of_frames * bits + 7) // 8
    vr = b"OB" if description.bits_allocated <= 8 else b"OW"
    yield encode_element_header(_PIXEL_DATA, vr, length + length % 2)
    if bits % 8 == 0:
        async for data in frames:
            yield data
    else:
        async for data in _bits_joined(frames, bits):
            yield data
    if length % 2:
        yield b"\0"


async def _bits_joined(frames: AsyncIterator[bytes], frame_bits: int) -> AsyncGenerator[bytes, None]:
    rest = np.empty(0, np.uint8)
    async for data in frames:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little", count=frame_bits)
        joined = np.concatenate((rest, bits))
        whole = len(joined) // 8 * 8
        yield np.packbits(joined[:whole], bitorder="little").tobytes()
        rest = joined[whole:]
    if len(rest):
        yield np.packbits(rest, bitorder="little").tobytes()


async def _encapsulated_element(
    frames: AsyncIterator[bytes], description: PixelDescription, number_of_frames: int
) -> AsyncGenerator[bytes, None]:
    """Yield an encapsulated Pixel Data element: an empty Basic Offset Table, and one fragment per frame, padded to an even length."""
    yield encode_element_header(_PIXEL_DATA, b"OB", UNDEFINED_LENGTH) + encode_item_header(0)
    async for data in frames:
        yield encode_item_header(len(data) + len(data) % 2)
        yield data
        if len(data) % 2:
            yield b"\0"
    yield SEQUENCE_DELIMITER


async def _chunks(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of pieces in chunks of at most 1 MiB: small pieces are joined, large ones are divided."""
    small = bytearray()
    async with aclosing(pieces):
        async for piece in pieces:
            if len(small) + len(piece) <= CHUNK_BYTES:
                small += piece
                continue
            if small:
                yield bytes(small)
                small.clear()
            view = memoryview(piece)
            whole = len(piece) // CHUNK_BYTES * CHUNK_BYTES
            for begin in range(0, whole, CHUNK_BYTES):
                yield bytes(view[begin : begin + CHUNK_BYTES])
            small += view[whole:]
    if small:
        yield bytes(small)


def _changes(instance: Instance, result: PixelDescription) -> dict[int, bytes]:
    """Return the elements of group 0028 that transcoding changes, by tag (PS3.5 §8.2)."""
    stored, changes = instance.stored.layout.pixel, {}
    if result.photometric_interpretation != stored.photometric_interpretation:
        value = result.photometric_interpretation.encode()
        changes[_PHOTOMETRIC_INTERPRETATION] = encode_element(_PHOTOMETRIC_INTERPRETATION, b"CS", value)
    if result.samples_per_pixel > 1 and result.planar_configuration != stored.planar_configuration:
        changes[_PLANAR_CONFIGURATION] = encode_element(_PLANAR_CONFIGURATION, b"US", struct.pack("<H", result.planar_configuration))
    return changes


def _wire(instance: Instance) -> list[tuple[int, int]]:
    return [(place.offset, place.length) for place in instance.stored.layout.wire]


def _around_pixels(instance: Instance) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the ranges of the wire form before and after the pixel element.

    Raises:
        CorruptInstance: the wire form of the layout does not contain the pixel element.
    """
    layout = instance.stored.layout
    begin, pixels_length = layout.pixel_element.offset, layout.pixel_element.length
    if layout.HasField("pixel_element_header"):
        # The header is stored apart from the value; in the wire form it comes directly before the value
        begin, pixels_length = layout.pixel_element_header.offset, layout.pixel_element_header.length + pixels_length
    before: list[tuple[int, int]] = []
    ranges = _wire(instance)
    while ranges:
        offset, length = ranges.pop(0)
        if offset <= begin < offset + length:
            before.append((offset, begin - offset))
            after = _without_first([(begin, offset + length - begin), *ranges], pixels_length)
            return [place for place in before if place[1]], after
        before.append((offset, length))
    raise errors.CorruptInstance(f"the layout of {instance.name} does not hold its pixel element")


def _without_first(ranges: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Return ranges without their first `count` bytes; these may extend over several ranges."""
    rest = []
    for offset, length in ranges:
        skipped = min(count, length)
        count -= skipped
        if length > skipped:
            rest.append((offset + skipped, length - skipped))
    return rest
