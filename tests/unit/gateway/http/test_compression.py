"""The content coding of JSON and XML bodies: RFC 9110 §12.5.3."""

import gzip

import pytest
import zstandard

from gantry_gateway.http import compression
from gantry_gateway.http.compression import LEAST_BYTES, Coding, negotiate
from gantry_standard import errors


@pytest.mark.parametrize(
    ("accept_encoding", "name", "least_bytes"),
    [
        pytest.param("", "", 0, id="missing"),
        pytest.param("gzip", "gzip", LEAST_BYTES, id="one"),
        pytest.param("gzip, deflate, br, zstd", "zstd", LEAST_BYTES, id="a browser"),
        pytest.param("gzip;q=1.0, zstd;q=0.9", "gzip", LEAST_BYTES, id="highest q"),
        pytest.param("x-gzip", "gzip", LEAST_BYTES, id="old name"),
        pytest.param("GZIP ; q=0.5 ", "gzip", LEAST_BYTES, id="case and spaces"),
        pytest.param("*", "zstd", LEAST_BYTES, id="any"),
        pytest.param("zstd;q=0, *", "gzip", LEAST_BYTES, id="any but"),
        pytest.param("br, deflate", "", 0, id="none that there is"),
        pytest.param("gzip;q=0", "", 0, id="refused"),
        pytest.param("identity", "", 0, id="as it is"),
        pytest.param("identity;q=0.9, gzip;q=0.5", "", 0, id="as it is, rather"),
        pytest.param("gzip, identity", "gzip", LEAST_BYTES, id="equally"),
        pytest.param("gzip, identity;q=0", "gzip", 0, id="not as it is"),
        pytest.param("gzip, *;q=0", "gzip", 0, id="nothing else"),
        pytest.param("*;q=0, identity", "", 0, id="nothing else, identity"),
        pytest.param("gzip;q=2, zstd;q=x", "", 0, id="no weights"),
        pytest.param("gzip;q=0.00,,zstd;q=0.001", "zstd", LEAST_BYTES, id="small weight"),
    ],
)
def test_the_coding_that_a_client_likes_best(accept_encoding: str, name: str, least_bytes: int) -> None:
    assert negotiate(accept_encoding) == Coding(name, least_bytes)


@pytest.mark.parametrize("accept_encoding", ["identity;q=0", "*;q=0", "br, identity;q=0", "gzip;q=0, zstd;q=0, identity;q=0"])
def test_nothing_that_a_client_takes(accept_encoding: str) -> None:
    with pytest.raises(errors.NotAcceptable, match="zstd, gzip and identity"):
        negotiate(accept_encoding)


def test_a_short_body_stays_as_it_is_unless_that_is_refused() -> None:
    assert not negotiate("gzip").applies_to(LEAST_BYTES - 1)
    assert negotiate("gzip").applies_to(LEAST_BYTES)
    assert negotiate("gzip, identity;q=0").applies_to(1)
    assert not negotiate("").applies_to(1 << 20)


UNPACKERS = {"gzip": gzip.decompress, "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)}


@pytest.mark.parametrize("name", compression.CODINGS)
async def test_a_body_comes_out_as_it_went_in(name: str) -> None:
    coding = Coding(name, 0)
    pieces = [bytes([number]) * 50_000 for number in range(20)]

    async def one_by_one():
        for piece in pieces:
            yield piece

    whole = b"".join(pieces)
    assert UNPACKERS[name](await compression.packed(coding, whole)) == whole
    assert UNPACKERS[name](b"".join([piece async for piece in compression.packed_chunks(coding, one_by_one())])) == whole
