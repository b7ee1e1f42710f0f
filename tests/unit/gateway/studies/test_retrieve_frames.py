"""Frames: as stored, decompressed, in one part or several, in ranges."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.gateway.retrieve_world import BITS, CT, J2K, JLS, JPEG, LE, ONE, SERIES, SR, STUDY, WSI, World, parts_of, running

OCTETS = 'multipart/related; type="application/octet-stream"'
STORED = f"{OCTETS}; transfer-syntax=*"


@pytest.fixture(params=["warm", "cold"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with running(tmp_path) as opened:
        opened.reader.warm = request.param == "warm"
        yield opened


# clients.md §7.1: what viewers send, on an instance stored in JPEG 2000.
SPELLINGS = [
    pytest.param('multipart/related; type="application/octet-stream"; transfer-syntax=*', J2K, id="quoted"),
    pytest.param("multipart/related; type=application/octet-stream; transfer-syntax=*", J2K, id="bare"),
    pytest.param('multipart/related ;type = "application/octet-stream" ; transfer-syntax = *', J2K, id="spaces"),
    pytest.param(f"multipart/related; type=application/octet-stream; transfer-syntax={LE}; transfer-syntax=*", J2K, id="double parameter"),
    pytest.param('multipart/related; type="application/octet-stream"; transfer-syntax="*"', J2K, id="quoted star"),
    pytest.param(None, LE, id="none"),
    pytest.param("*/*", LE, id="any"),
    pytest.param("image/jpeg", None, id="image/jpeg"),
    pytest.param('multipart/related; type="image/jphc"', None, id="image/jphc"),
    pytest.param("application/octet-stream", LE, id="single-part octet-stream"),
    pytest.param(f"application/octet-stream; transfer-syntax={J2K}", J2K, id="single part as stored"),
    pytest.param("application/x-unknown", None, id="unknown"),
]


@pytest.mark.parametrize(("accept", "transfer_syntax"), SPELLINGS)
async def test_accept_spellings(world: World, accept: str | None, transfer_syntax: str | None) -> None:
    answer = await world.get(f"{world.instance(WSI)}/frames/1", accept)
    if transfer_syntax is None:
        assert answer.status_code == 406
        assert "application/octet-stream" in answer.text
        return
    assert answer.status_code == 200
    expected = b"first tile" if transfer_syntax == J2K else f"frame 1 {LE}".encode()
    if answer.headers["content-type"].startswith("multipart"):
        (part,) = parts_of(answer)
        assert part.headers["Content-Type"] == f"application/octet-stream; transfer-syntax={transfer_syntax}"
        assert part.body == expected
    else:
        assert answer.headers["content-type"] == f"application/octet-stream; transfer-syntax={transfer_syntax}"
        assert answer.content == expected


async def test_accept_in_the_query_is_honoured_without_a_header(world: World) -> None:
    path = f"{world.instance(WSI)}/frames/1?accept=multipart/related;type=%22application/octet-stream%22;transfer-syntax={J2K}"
    answer = await world.get(path, None)
    assert parts_of(answer)[0].body == b"first tile"


async def test_part_head_is_spelled_as_viewers_look_for_it(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/2", STORED)
    boundary = answer.headers["content-type"].partition("boundary=")[2]
    assert answer.headers["content-type"] == f'multipart/related; type="application/octet-stream"; boundary={boundary}'
    assert re.fullmatch("[0-9a-f]{32}", boundary)
    assert (
        answer.content
        == (
            f"--{boundary}\r\nContent-Type: application/octet-stream; transfer-syntax={LE}\r\nContent-Length: 4\r\n"
            f"Content-Location: {world.root}{world.instance(CT)}/frames/2\r\n\r\nBBBB\r\n--{boundary}--\r\n"
        ).encode()
    )
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_each_answer_has_a_boundary_of_its_own(world: World) -> None:
    first, second = [await world.get(f"{world.instance(CT)}/frames/2", STORED) for _ in range(2)]
    assert first.headers["content-type"] != second.headers["content-type"]


async def test_frames_come_in_the_order_asked_for_one_part_each(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/1,3", OCTETS)
    parts = parts_of(answer)
    assert [part.body for part in parts] == [b"AAAA", b"CCCC"]
    assert [part.headers["Content-Location"][-9:] for part in parts] == ["/frames/1", "/frames/3"]
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_percent_encoded_comma_separates_frames(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/1%2C2", OCTETS)
    assert [part.body for part in parts_of(answer)] == [b"AAAA", b"BBBB"]


async def test_fragments_of_a_frame_are_joined_without_their_heads(world: World) -> None:
    answer = await world.get(f"{world.instance(WSI)}/frames/1,2", 'multipart/related; type="image/jp2"')
    assert [part.body for part in parts_of(answer)] == [b"first tile", b"second tile"]
    assert parts_of(answer)[0].headers["Content-Type"] == f"image/jp2; transfer-syntax={J2K}"


async def test_one_bit_frames_begin_at_bit_zero(world: World) -> None:
    answer = await world.get(f"{world.instance(BITS)}/frames/1,2,3", OCTETS)
    assert [int.from_bytes(part.body, "little") for part in parts_of(answer)] == [0x1FF, 0x001, 0x155]
    assert {part.headers["Content-Length"] for part in parts_of(answer)} == {"2"}


async def test_frames_are_decompressed_where_no_transfer_syntax_is_named(world: World) -> None:
    answer = await world.get(f"{world.instance(WSI)}/frames/1,2", OCTETS)
    parts = parts_of(answer)
    assert [part.body for part in parts] == [f"frame {n} {LE}".encode() for n in (1, 2)]
    assert {part.headers["Content-Type"] for part in parts} == {f"application/octet-stream; transfer-syntax={LE}"}
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_the_renderer_gets_the_record(world: World) -> None:
    await world.get(f"{world.instance(WSI)}/frames/1", OCTETS)
    (source,) = world.renderer.sources
    assert source.version == world.index.records[WSI].version
    assert source.stored.location == world.index.records[WSI].stored.location


async def test_a_transcoded_frame_is_kept_for_the_next_request(world: World) -> None:
    path = f"{world.instance(WSI)}/frames/1"
    first = parts_of(await world.get(path, OCTETS))[0].body
    assert parts_of(await world.get(path, OCTETS))[0].body == first
    assert len(world.renderer.sources) == 1
    both = parts_of(await world.get(f"{world.instance(WSI)}/frames/1,2", OCTETS))
    assert both[0].body == first
    assert [part.body for part in both] == [part.body for part in parts_of(await world.get(f"{world.instance(WSI)}/frames/1,2", OCTETS))]
    assert len(world.renderer.sources) == 2


async def test_native_frames_are_compressed_on_request(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/1", f'multipart/related; type="image/jls"; transfer-syntax={JLS}')
    assert parts_of(answer)[0].body == f"frame 1 {JLS}".encode()
    assert parts_of(answer)[0].headers["Content-Type"] == f"image/jls; transfer-syntax={JLS}"


async def test_the_next_candidate_is_taken_where_the_first_is_impossible(world: World) -> None:
    accept = f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}, {OCTETS}; q=0.5'
    answer = await world.get(f"{world.instance(CT)}/frames/1", accept)
    assert parts_of(answer)[0].body == b"AAAA"


async def test_what_is_stored_is_preferred_among_equals(world: World) -> None:
    answer = await world.get(f"{world.instance(WSI)}/frames/1", f'{OCTETS}, multipart/related; type="image/*"')
    assert parts_of(answer)[0].headers["Content-Type"] == f"image/jp2; transfer-syntax={J2K}"


async def test_what_the_renderer_cannot_do_is_not_acceptable(world: World) -> None:
    world.renderer.impossible.add(WSI)
    answer = await world.get(
        f"{world.instance(WSI)}/frames/1",
        OCTETS,
    )
    assert answer.status_code == 406
    assert J2K in answer.text


async def test_implicit_vr_is_never_sent(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/1", f"{OCTETS}; transfer-syntax=1.2.840.10008.1.2")
    assert answer.status_code == 406


async def test_several_frames_are_not_a_single_part(world: World) -> None:
    assert (await world.get(f"{world.instance(CT)}/frames/1,2", "application/octet-stream")).status_code == 406


@pytest.mark.parametrize("frames", ["0", "1,1", "2,1", "a", "1,", ",1", "-1", "1.5", "01", "1;2"])
async def test_a_list_that_is_none_is_refused(world: World, frames: str) -> None:
    assert (await world.get(f"{world.instance(CT)}/frames/{frames}", OCTETS)).status_code == 400


@pytest.mark.parametrize(("uid", "frames"), [(CT, "4"), (CT, "1,4"), (ONE, "2"), (SR, "1")])
async def test_a_frame_beyond_the_last_is_not_found(world: World, uid: str, frames: str) -> None:
    answer = await world.get(f"{world.instance(uid)}/frames/{frames}", OCTETS)
    assert answer.status_code == 404
    assert uid in answer.text


async def test_unknown_mismatched_and_deleted_instances(world: World) -> None:
    world.index.deleted.add("1.2.3.4.9")
    below = f"/studies/{STUDY}/series"
    assert (await world.get(f"{below}/{SERIES}/instances/9.9/frames/1", OCTETS)).status_code == 404
    assert (await world.get(f"{below}/1.2.3.5/instances/{CT}/frames/1", OCTETS)).status_code == 404
    assert (await world.get(f"{below}/{SERIES}/instances/1.2.3.4.9/frames/1", OCTETS)).status_code == 410


async def test_dicom_and_rendered_types_do_not_mix(world: World) -> None:
    assert (await world.get(f"{world.instance(CT)}/frames/1", "application/octet-stream, image/png")).status_code == 400


async def test_a_wildcard_in_the_accept_parameter_is_refused(world: World) -> None:
    assert (await world.get(f"{world.instance(CT)}/frames/1?accept=*/*", "*/*")).status_code == 400


@pytest.mark.parametrize(
    ("asked", "body", "content_range"),
    [
        ("bytes=0-1", b"BB", "bytes 0-1/4"),
        ("bytes=2-", b"BB", "bytes 2-3/4"),
        ("bytes=-1", b"B", "bytes 3-3/4"),
        ("bytes=1-99", b"BBB", "bytes 1-3/4"),
    ],
)
async def test_a_range_of_a_frame(world: World, asked: str, body: bytes, content_range: str) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/2", "application/octet-stream", range=asked)
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, body, content_range)
    assert answer.headers["content-length"] == str(len(body))


async def test_a_range_across_fragments(world: World) -> None:
    answer = await world.get(f"{world.instance(WSI)}/frames/2", "image/jp2", range="bytes=5-8")
    assert (answer.status_code, answer.content) == (206, b"d ti")


async def test_a_range_after_the_end_is_not_satisfiable(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/2", "application/octet-stream", range="bytes=4-")
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */4")


@pytest.mark.parametrize("asked", ["bytes=0-1,3-3", "lines=1-2", "bytes=3-1", "bytes=-", "nonsense"])
async def test_a_range_that_is_not_served_gives_the_whole(world: World, asked: str) -> None:
    answer = await world.get(f"{world.instance(CT)}/frames/2", "application/octet-stream", range=asked)
    assert (answer.status_code, answer.content) == (200, b"BBBB")


async def test_if_range_of_another_representation_gives_the_whole(world: World) -> None:
    path = f"{world.instance(CT)}/frames/2"
    etag = (await world.get(path, "application/octet-stream")).headers["etag"]
    same = await world.get(path, "application/octet-stream", range="bytes=0-0", if_range=etag)
    other = await world.get(path, "application/octet-stream", range="bytes=0-0", if_range='"other"')
    assert (same.status_code, other.status_code) == (206, 200)


async def test_an_entity_tag_that_matches_is_not_modified(world: World) -> None:
    path = f"{world.instance(CT)}/frames/2"
    etag = (await world.get(path, STORED)).headers["etag"]
    answer = await world.get(path, STORED, if_none_match=f'"x", {etag}')
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert (await world.get(f"{world.instance(CT)}/frames/3", STORED, if_none_match=etag)).status_code == 200


async def test_head_has_the_headers_of_get_and_no_body(world: World) -> None:
    answer = await world.http.head(f"{world.root}{world.instance(CT)}/frames/1", headers={"accept": STORED})
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 4


async def test_frames_of_a_video_cannot_be_had(world: World) -> None:
    world.add("1.2.3.4.7", "1.2.840.10008.1.2.4.102", [b"whole video"], frames=30)
    answer = await world.get(f"{world.instance('1.2.3.4.7')}/frames/1", STORED)
    assert answer.status_code == 406


async def test_an_object_that_moved_is_asked_for_once_more(world: World) -> None:
    world.records.heartbeat()
    path = f"{world.instance(CT)}/frames/1"
    assert (await world.get(path, "application/octet-stream")).content == b"AAAA"
    world.move(CT)
    assert (await world.get(path, "application/octet-stream")).content == b"AAAA"
    assert world.index.asked == [CT, CT]


async def test_a_range_of_an_object_that_moved(world: World) -> None:
    world.records.heartbeat()
    path = f"{world.instance(CT)}/frames/1,2"
    await world.get(path, OCTETS)
    world.move(CT)
    assert [part.body for part in parts_of(await world.get(path, OCTETS))] == [b"AAAA", b"BBBB"]
    world.reader.warm = False
    answer = await world.get(f"{world.instance(CT)}/frames/3", "application/octet-stream", range="bytes=1-2")
    assert answer.content == b"CC"


async def test_bytes_that_are_nowhere_are_a_failure_of_ours(world: World) -> None:
    world.reader.warm = False
    world.pack.path.unlink()
    assert (await world.get(f"{world.instance(CT)}/frames/1", OCTETS)).status_code == 503


async def test_a_long_list_is_read_with_few_calls(world: World) -> None:
    world.reader.warm = False
    world.add("1.2.3.4.8", LE, [bytes(range(250)) * 10], frame_bits=8, frames=2500)
    wanted = ",".join(map(str, range(1, 2001)))
    parts = parts_of(await world.get(f"{world.instance('1.2.3.4.8')}/frames/{wanted}", OCTETS))
    assert [part.body[0] for part in parts] == [n % 250 for n in range(2000)]
    assert len(world.reader.reads) == 8


async def test_a_missing_accept_is_refused_where_the_setting_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, strict_accept=True) as strict:
        assert (await strict.get(f"{strict.instance(CT)}/frames/1", None)).status_code == 406
