"""Metadata as DICOM JSON, and bulkdata by the BulkDataURIs in it."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gantry_gateway.answers import bodies
from gantry_gateway.studies import metadata
from gantry_standard.dicom.native_xml import to_json_model
from tests.unit.gateway.retrieve_world import BITS, CT, J2K, LE, ONE, OTHER_SERIES, SERIES, SR, STUDY, WSI, World, parts_of, running

JSON = "application/dicom+json"
XML = 'multipart/related; type="application/dicom+xml"'
OCTETS = 'multipart/related; type="application/octet-stream"'


@pytest.fixture(params=["warm", "cold"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with running(tmp_path) as opened:
        opened.reader.warm = request.param == "warm"
        yield opened


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[World]:
    """An index that sends state tags, and all metadata inline."""
    async with running(tmp_path / "kept") as opened:
        opened.index.json_places.clear()
        opened.index.state = b"1"
        yield opened


def uids(answer) -> list[str]:
    return [row["00080018"]["Value"][0] for row in answer.json()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param(f"/studies/{STUDY}/metadata", [CT, WSI, BITS, SR, ONE], id="study"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}/metadata", [CT, WSI, BITS, SR], id="series"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}/instances/{CT}/metadata", [CT], id="instance"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}/instances/{SR}/metadata", [SR], id="instance whose metadata lies in a pack"),
    ],
)
async def test_one_array_in_order(world: World, path: str, expected: list[str]) -> None:
    answer = await world.get(path, JSON)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == JSON
    assert answer.headers["content-location"] == f"{world.root}{path}"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert uids(answer) == expected


async def test_bulkdata_uris_begin_with_the_base_that_the_client_knows(world: World) -> None:
    path = f"/studies/{STUDY}/metadata"
    plain = await world.get(path, JSON)
    behind = await world.get(path, JSON, forwarded="proto=https;host=pacs.example.org")
    assert plain.json()[0]["7FE00010"]["BulkDataURI"] == f"{world.root}/b"
    assert {row.get("7FE00010", row.get("00880140"))["BulkDataURI"][:34] for row in behind.json()} == {"https://pacs.example.org/dicom-web"}
    assert plain.headers["etag"] != behind.headers["etag"]


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (JSON, 200),
        ("application/json", 200),
        ("application/dicom+json, application/json", 200),
        ('multipart/related; type="application/dicom+xml", application/dicom+json;q=0.5', 200),
        ("*/*", 200),
        (None, 200),
        ("application/*", 200),
        ("foo, application/dicom+json", 200),
        ("APPLICATION/DICOM+JSON", 200),
        ("application/dicom+json;q=0, */*", 200),
        (XML, 200),
        ("application/dicom+xml", 406),
        ("application/zip", 406),
        ("application/dicom, image/png", 400),
    ],
)
async def test_accept(world: World, accept: str | None, status: int) -> None:
    assert (await world.get(f"/studies/{STUDY}/metadata", accept)).status_code == status


async def test_an_entity_tag_that_matches_is_not_modified(world: World) -> None:
    path = f"/studies/{STUDY}/metadata"
    etag = (await world.get(path, JSON)).headers["etag"]
    again = await world.get(path, JSON, if_none_match=etag)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    world.index.records[CT].version += 100
    assert (await world.get(path, JSON, if_none_match=etag)).status_code == 200


async def test_gzip_where_the_client_takes_it(world: World) -> None:
    world.index.json[CT] = b'{"00080018":{"vr":"UI","Value":["%s"]}' % CT.encode() + b', "00081030":{"vr":"LO"}' * 10_000 + b"}"
    for path in (world.instance(CT), f"/studies/{STUDY}"):
        request = world.http.build_request("GET", f"{world.root}{path}/metadata", headers={"accept": JSON, "accept-encoding": "gzip"})
        answer = await world.http.send(request, stream=True)
        raw = b"".join([piece async for piece in answer.aiter_raw()])
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["vary"].startswith("Accept, Accept-Encoding")
        assert int(answer.headers["content-length"]) == len(raw) < 20_000
        assert json.loads(gzip.decompress(raw))[0]["00080018"]["Value"] == [CT]


async def test_much_metadata_is_streamed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "METADATA_AT_ONCE_BYTES", 1000)
    for number in range(40):
        world.add(f"1.2.3.4.{100 + number}", LE)
    answer = await world.get(f"/studies/{STUDY}/metadata", JSON)
    assert uids(answer) == list(world.index.records)


# Answers that are kept


async def all_of(world: World, path: str, **headers: str) -> httpx.Response:
    """Return the metadata of instances whose metadata is not in a pack."""
    return await world.get(f"/studies/{STUDY}{path}/metadata", JSON, **headers)


async def test_metadata_that_has_not_changed_is_sent_again_as_it_was(kept: World) -> None:
    first = await all_of(kept, "")
    again = await all_of(kept, "")
    assert kept.index.known_states == [b"", b"1"]
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-length"] == str(len(first.content))
    differing = {"date", "x-request-id"}
    assert {n: v for n, v in again.headers.items() if n not in differing} == {n: v for n, v in first.headers.items() if n not in differing}
    assert (await all_of(kept, "", if_none_match=first.headers["etag"])).status_code == 304


async def test_metadata_that_has_changed_is_never_the_kept_one(kept: World) -> None:
    first = await all_of(kept, "")
    kept.index.json[CT] = b'{"00080018":{"vr":"UI","Value":["1.9"]}}'
    kept.index.records[CT].version += 1
    kept.index.state = b"2"
    second = await all_of(kept, "")
    assert second.json()[0]["00080018"]["Value"] == ["1.9"]
    assert second.headers["etag"] != first.headers["etag"]
    assert (await all_of(kept, "", if_none_match=first.headers["etag"])).status_code == 200
    kept.index.records.clear()
    assert (await all_of(kept, "")).status_code == 404
    assert kept.index.known_states == [b"", b"1", b"2", b"2"]


async def test_each_base_url_scope_and_coding_has_its_own(kept: World) -> None:
    identified = b'{"00080018":{"vr":"UI","Value":["%s"]},"7FE00010":{"vr":"OW","BulkDataURI":"\0/b"}' % CT.encode()
    kept.index.json[CT] = identified + b" " * 4000 + b"}"
    for _ in range(2):
        plain = await all_of(kept, "")
        series = await all_of(kept, f"/series/{OTHER_SERIES}")
        behind = await all_of(kept, "", forwarded="proto=https;host=pacs.example.org")
        packed = await all_of(kept, "", accept_encoding="gzip")
        assert b"https://pacs.example.org/dicom-web/b" in behind.content
        assert b"pacs.example.org" not in plain.content
        assert uids(series) == [ONE]
        assert packed.content == plain.content
        assert (packed.headers["content-encoding"], "content-encoding" in plain.headers) == ("gzip", False)
    assert kept.index.known_states == [b""] * 4 + [b"1"] * 4


async def test_xml_and_single_instances_and_what_lies_in_a_pack_are_made_each_time(kept: World, world: World) -> None:
    for _ in range(2):
        assert (await kept.get(f"/studies/{STUDY}/metadata", XML)).status_code == 200
        assert (await all_of(kept, f"/series/{SERIES}/instances/{CT}")).status_code == 200
    world.index.state = b"1"
    for _ in range(2):
        assert uids(await all_of(world, "")) == [CT, WSI, BITS, SR, ONE]
    assert {*kept.index.known_states, *world.index.known_states} == {b""}


async def test_what_would_take_more_than_an_eighth_of_the_room_is_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path, metadata_cache_bytes=8 * 1200) as small:
        small.index.json_places.clear()
        small.index.state = b"1"
        for _ in range(2):
            assert (await all_of(small, "")).status_code == 200
            assert (await all_of(small, f"/series/{OTHER_SERIES}")).status_code == 200
        assert small.index.known_states == [b"", b"", b"", b"1"]


async def test_unknown_and_deleted(world: World) -> None:
    world.index.deleted.add("1.2.3.4.9")
    assert (await world.get(f"/studies/{STUDY}/series/{SERIES}/instances/1.2.3.4.9/metadata", JSON)).status_code == 410
    assert (await world.get("/studies/9/metadata", JSON)).status_code == 404


async def test_metadata_that_moved_is_asked_for_once_more(world: World) -> None:
    world.reader.warm = False
    (world.reader.directory / "packs/moved.pack").write_bytes(world.pack.path.read_bytes())
    world.index.json_moved_to = "packs/moved.pack"
    world.pack.path.unlink()
    assert uids(await world.get(f"/studies/{STUDY}/metadata", JSON)) == [CT, WSI, BITS, SR, ONE]


# XML


def native_models(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Return Content-Location and document (as DICOM JSON) of each part."""
    assert answer.status_code == 200
    parts = parts_of(answer)
    assert {part.headers["Content-Type"] for part in parts} == {"application/dicom+xml"}
    return [(part.headers["Content-Location"], to_json_model(part.body)) for part in parts]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param(f"/studies/{STUDY}", [CT, WSI, BITS, SR, ONE], id="study"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}", [CT, WSI, BITS, SR], id="series"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}/instances/{CT}", [CT], id="instance"),
        pytest.param(f"/studies/{STUDY}/series/{SERIES}/instances/{SR}", [SR], id="instance whose metadata lies in a pack"),
    ],
)
async def test_one_document_per_part_in_order(world: World, path: str, expected: list[str]) -> None:
    in_json, answer = await world.get(f"{path}/metadata", JSON), await world.get(f"{path}/metadata", XML)
    found = native_models(answer)
    assert [model["00080018"]["Value"] for _, model in found] == [[uid] for uid in expected]
    assert [model for _, model in found] == in_json.json()
    assert [location for location, _ in found] == [
        f"{world.root}/studies/{STUDY}/series/{OTHER_SERIES if uid == ONE else SERIES}/instances/{uid}/metadata" for uid in expected
    ]
    assert answer.headers["content-location"] == f"{world.root}{path}/metadata"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["vary"].startswith("Accept, Accept-Encoding")


async def test_xml_has_an_entity_tag_of_its_own(world: World) -> None:
    path = f"/studies/{STUDY}/metadata"
    in_json, in_xml = await world.get(path, JSON), await world.get(path, XML)
    assert in_xml.headers["etag"] not in ("", in_json.headers["etag"])
    again = await world.get(path, XML, if_none_match=in_xml.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")
    assert (await world.get(path, XML, if_none_match=in_json.headers["etag"])).status_code == 200


async def test_a_large_document_is_written_in_pieces_without_its_length(world: World) -> None:
    items = [{"00080100": {"vr": "SH", "Value": [f"code {number}"]}} for number in range(20_000)]
    model = {"00080018": {"vr": "UI", "Value": [CT]}, "00081032": {"vr": "SQ", "Value": items}, "0020000E": {"vr": "UI", "Value": [SERIES]}}
    world.index.json[CT] = json.dumps(model).encode()
    answer = await world.get(f"/studies/{STUDY}/metadata", XML)
    first, second = parts_of(answer)[:2]
    assert "Content-Length" not in first.headers
    assert second.headers["Content-Length"] == str(len(second.body))
    assert native_models(answer)[0] == (f"{world.root}{world.instance(CT)}/metadata", model)


async def test_much_metadata_is_streamed_as_xml(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "METADATA_AT_ONCE_BYTES", 1000)
    monkeypatch.setattr(metadata, "XML_BATCH_BYTES", 1000)
    monkeypatch.setattr(bodies, "GATHER_BYTES", 1000)
    for number in range(40):
        world.add(f"1.2.3.4.{100 + number}", LE)
    answer = await world.get(f"/studies/{STUDY}/metadata", XML)
    assert [model["00080018"]["Value"] for _, model in native_models(answer)] == [[uid] for uid in world.index.records]
    assert "content-length" not in answer.headers
    assert "etag" not in answer.headers


async def test_xml_metadata_that_moved_is_asked_for_once_more(world: World) -> None:
    world.reader.warm = False
    (world.reader.directory / "packs/moved.pack").write_bytes(world.pack.path.read_bytes())
    world.index.json_moved_to = "packs/moved.pack"
    world.pack.path.unlink()
    assert len(native_models(await world.get(f"/studies/{STUDY}/metadata", XML))) == 5


@pytest.mark.parametrize(("accept_encoding", "coding"), [("gzip", "gzip"), ("gzip, zstd", "zstd"), ("gzip, zstd;q=0.5", "gzip")])
async def test_xml_is_compressed_like_json(world: World, accept_encoding: str, coding: str) -> None:
    headers = {"accept": XML, "accept-encoding": accept_encoding}
    answer = await world.http.get(f"{world.root}/studies/{STUDY}/metadata", headers=headers)
    assert answer.headers["content-encoding"] == coding
    assert len(native_models(answer)) == 5


# Bulkdata


async def test_a_value_is_a_single_part(world: World) -> None:
    for accept in ("*/*", "application/octet-stream", None):
        answer = await world.get(f"{world.instance(CT)}/bulkdata/00420011", accept)
        assert (answer.status_code, answer.content) == (200, b"%PDF-1.7")
        assert answer.headers["content-location"] == f"{world.root}{world.instance(CT)}/bulkdata/00420011"
        assert answer.headers["content-type"] == f"application/octet-stream; transfer-syntax={LE}"


async def test_a_value_in_a_multipart(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/bulkdata/00420011", OCTETS)
    (part,) = parts_of(answer)
    assert part.body == b"%PDF-1.7"
    assert part.headers["Content-Location"] == f"{world.root}{world.instance(CT)}/bulkdata/00420011"


async def test_a_nested_value(world: World) -> None:
    assert (await world.get(f"{world.instance(CT)}/bulkdata/00540016/1/00181078")).content == b"nested"


async def test_native_pixel_data_is_one_value(world: World) -> None:
    assert (await world.get(f"{world.instance(CT)}/bulkdata/7fe00010")).content == b"AAAABBBBCCCC"


async def test_a_range_of_a_value(world: World) -> None:
    answer = await world.get(f"{world.instance(CT)}/bulkdata/00420011", range="bytes=0-3")
    assert (answer.status_code, answer.content) == (206, b"%PDF")


@pytest.mark.parametrize("path", ["00420012", "7FE00010/1", "x", "00420011/0/00420011", "0042001"])
async def test_a_path_that_leads_nowhere(world: World, path: str) -> None:
    assert (await world.get(f"{world.instance(CT)}/bulkdata/{path}")).status_code == 404


@pytest.mark.parametrize("accept", ["*/*", 'multipart/related; type="image/jp2"', f"{OCTETS}; transfer-syntax=*"])
async def test_compressed_pixel_data_is_one_part_per_frame(world: World, accept: str) -> None:
    url = f"{world.instance(WSI)}/bulkdata/7FE00010"
    parts = parts_of(await world.get(url, accept))
    assert [part.body for part in parts] == [b"first tile", b"second tile"]
    assert {part.headers["Content-Location"] for part in parts} == {f"{world.root}{url}"}
    media_type = "application/octet-stream" if "octet" in accept else "image/jp2"
    assert {part.headers["Content-Type"] for part in parts} == {f"{media_type}; transfer-syntax={J2K}"}


async def test_compressed_pixel_data_is_decompressed_into_one_part(world: World) -> None:
    url, whole = f"{world.instance(WSI)}/bulkdata/7FE00010", f"frame 1 {LE}frame 2 {LE}".encode()
    assert [part.body for part in parts_of(await world.get(url, OCTETS))] == [whole]
    single = await world.get(url, "application/octet-stream")
    assert (single.content, single.headers["content-location"]) == (whole, f"{world.root}{url}")


async def test_what_bulkdata_cannot_be_had_as(world: World) -> None:
    assert (await world.get(f"{world.instance(CT)}/bulkdata/00420011", "image/jp2")).status_code == 406
    assert (await world.get(f"{world.instance(WSI)}/bulkdata/7FE00010", "image/jp2")).status_code == 406
    answer = await world.get(f"{world.instance(CT)}/bulkdata/00420011", f"{OCTETS}; transfer-syntax={J2K}")
    assert answer.status_code == 406
