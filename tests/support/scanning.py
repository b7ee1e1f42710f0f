"""Scans bytes, and reads the byte ranges that the scan refers to."""

from collections.abc import Callable
from dataclasses import dataclass

from gantry_standard.dicom.elements import Elements
from gantry_standard.dicom.scan import Limits, Scanner
from gantry_standard.dicom.scanned import EncapsulatedFrames, NativeFrames, Origin, ScannedInstance, Span

Amend = Callable[[Elements], Elements | None]


@dataclass(frozen=True)
class Scan:
    """A scan with both of its byte streams."""

    original: bytes
    rendition: bytes
    scanned: ScannedInstance

    def read(self, span: Span) -> bytes:
        """Return the bytes of a span."""
        stream = self.original if span.origin is Origin.ORIGINAL else self.rendition
        assert span.offset + span.length <= len(stream)
        return stream[span.offset : span.offset + span.length]

    @property
    def wire(self) -> bytes:
        """Return the file as it is sent to clients."""
        return b"".join(map(self.read, self.scanned.wire))

    def frame(self, frame_index: int) -> bytes:
        """Return the bytes of one frame; of frames that are not whole bytes, from bit 0 on, unused bits zero."""
        table = self.scanned.frames
        assert table is not None
        encoding = table.encoding
        if isinstance(encoding, NativeFrames):
            return _native_frame(self.read(encoding.span), encoding.frame_bits, frame_index)
        return self._encapsulated_frame(encoding, frame_index)

    def _encapsulated_frame(self, encoding: EncapsulatedFrames, frame_index: int) -> bytes:
        firsts = encoding.first_fragments or tuple(range(len(encoding.fragment_offsets)))
        end = firsts[frame_index + 1] if frame_index + 1 < len(firsts) else len(encoding.fragment_offsets)
        fragments = range(firsts[frame_index], end)
        spans = (Span(encoding.origin, encoding.fragment_offsets[index], encoding.fragment_lengths[index]) for index in fragments)
        return b"".join(map(self.read, spans))


def _native_frame(value: bytes, frame_bits: int, frame_index: int) -> bytes:
    first_bit = frame_index * frame_bits
    if frame_bits % 8 == 0:
        return value[first_bit // 8 : (first_bit + frame_bits) // 8]
    whole = int.from_bytes(value, "little") >> first_bit & (1 << frame_bits) - 1
    return whole.to_bytes((frame_bits + 7) // 8, "little")


def scan(original: bytes, *, chunk_bytes: int = 1 << 20, limits: Limits = Limits(), amend: Amend | None = None) -> Scan:  # noqa: B008
    """Scan a file that arrives in chunks of equal size."""
    rendition = bytearray()
    scanner = Scanner(rendition.extend, limits, amend)
    view = memoryview(original)
    for start in range(0, len(original), chunk_bytes):
        scanner.feed(view[start : start + chunk_bytes])
    scanned = scanner.finish()
    return Scan(original, bytes(rendition), scanned)
