"""Rendered instances and frames."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gantry.renderer.v1.renderer_pb2 import SOURCE_ROLE_SUBJECT
from tests.unit.gateway.retrieve_world import CT, ONE, SR, WSI, World, parts_of, running

WARNING = "The following annotation values are not supported: "


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/jpeg"),
        (None, "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("image/jpeg", "image/jpeg"),
        ("image/png", "image/png"),
        ("image/png;q=0.9, image/jpeg;q=0.5", "image/png"),
        ("image/avif,image/webp,*/*", "image/jpeg"),
        ("image/gif, image/png;q=0.5", "image/png"),
        ("image/jp2;level=1,image/jpeg;q=0.5", "image/jpeg"),
    ],
)
async def test_one_frame_is_a_single_part(world: World, accept: str | None, media_type: str) -> None:
    answer = await world.get(f"{world.instance(ONE)}/rendered", accept)
    assert (answer.status_code, answer.content) == (200, b"image 1")
    assert answer.headers["content-type"] == media_type
    assert answer.headers["content-location"] == f"{world.root}{world.instance(ONE)}"
    assert answer.headers["content-length"] == "7"


async def test_one_frame_as_multipart(world: World) -> None:
    (part,) = parts_of(await world.get(f"{world.instance(CT)}/frames/2/rendered", 'multipart/related; type="image/png"'))
    assert part.body == b"image 2"
    assert part.headers["Content-Type"] == "image/png"
    assert part.headers["Content-Location"] == f"{world.root}{world.instance(CT)}/frames/2"


@pytest.mark.parametrize("accept", ["*/*", "image/jpeg", 'multipart/related; type="image/jpeg"'])
async def test_an_instance_of_several_frames_is_one_part_per_frame(world: World, accept: str) -> None:
    answer = await world.get(f"{world.instance(CT)}/rendered", accept)
    parts = parts_of(answer)
    assert [part.body for part in parts] == [b"image 1", b"image 2", b"image 3"]
    assert [part.headers["Content-Location"] for part in parts] == [f"{world.root}{world.instance(CT)}/frames/{n}" for n in (1, 2, 3)]


async def test_a_frame_list_is_multipart_only(world: World) -> None:
    path = f"{world.instance(CT)}/frames/1,3/rendered"
    assert [part.body for part in parts_of(await world.get(path))] == [b"image 1", b"image 3"]
    assert (await world.get(path, "image/jpeg")).status_code == 406


async def test_parameters_reach_the_renderer(world: World) -> None:
    query = "window=40,400.5,linear&viewport=100,50,,-2,,-8.5&quality=80"
    answer = await world.get(f"{world.instance(CT)}/frames/2/rendered?{query}", "image/jpeg")
    assert answer.status_code == 200
    (asked,) = world.renderer.rendered
    assert (asked.frame_number, asked.media_type, asked.quality) == (2, "image/jpeg", 80)
    assert (asked.window.center, asked.window.width, asked.window.function) == (40, 400.5, "linear")
    assert (asked.viewport.width, asked.viewport.height, asked.viewport.source_y, asked.viewport.source_height) == (100, 50, 2, -8.5)
    assert not asked.viewport.HasField("source_x")
    assert not asked.viewport.HasField("source_width")
    (source,) = asked.sources
    assert source.role == SOURCE_ROLE_SUBJECT
    assert source.stored.dicom_json == world.index.json[CT]


async def test_without_parameters_nothing_is_said(world: World) -> None:
    await world.get(f"{world.instance(CT)}/frames/2/rendered", "image/png")
    (asked,) = world.renderer.rendered
    assert not asked.HasField("window")
    assert not asked.HasField("viewport")
    assert asked.quality == 0


@pytest.mark.parametrize(
    "query",
    [
        "window=1,2",
        "viewport=10",
        "quality=0",
        "annotation=",
        "iccprofile=maybe",
        "window=1,0,linear",
        "quality=1&quality=2",
        "accept=image/*",
    ],
)
async def test_a_wrong_parameter_is_refused(world: World, query: str) -> None:
    assert (await world.get(f"{world.instance(ONE)}/rendered?{query}")).status_code == 400


async def test_annotations_that_are_not_burnt_in_are_told(world: World) -> None:
    for path in (f"{world.instance(ONE)}/rendered", f"{world.instance(CT)}/rendered"):
        answer = await world.get(f"{path}?annotation=patient,foo")
        assert answer.status_code == 200
        assert answer.headers["warning"] == f"299 {world.root}: {WARNING}patient, foo"


async def test_an_icc_profile_in_a_type_that_holds_none_is_refused(world: World) -> None:
    assert (await world.get(f"{world.instance(ONE)}/rendered?iccprofile=yes", "image/gif")).status_code == 400
    assert (await world.get(f"{world.instance(ONE)}/rendered?iccprofile=no", "image/jpeg")).status_code == 200


async def test_an_entity_tag_says_what_was_rendered(world: World) -> None:
    path = f"{world.instance(ONE)}/rendered?window=40,400,linear"
    etag = (await world.get(path)).headers["etag"]
    rendered = len(world.renderer.rendered)
    assert (await world.get(path, if_none_match=etag)).status_code == 304
    assert len(world.renderer.rendered) == rendered
    assert (await world.get(path.replace("400", "401"), if_none_match=etag)).status_code == 200
    assert (await world.get(path, "image/png", if_none_match=etag)).status_code == 200


async def test_what_is_no_image_is_not_rendered(world: World) -> None:
    assert (await world.get(f"{world.instance(SR)}/rendered")).status_code == 406
    assert (await world.get(f"{world.instance(SR)}/frames/1/rendered")).status_code == 404
    assert (await world.get(f"{world.instance(CT)}/frames/4/rendered")).status_code == 404
    assert (await world.get(f"{world.instance(CT)}/frames/0/rendered")).status_code == 400


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("image/gif", 406),
        ("application/dicom", 406),
        ("image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50", 406),
        ("image/png, application/dicom+json", 400),
        ("text/html", 406),
    ],
)
async def test_what_cannot_be_rendered(world: World, accept: str, status: int) -> None:
    assert (await world.get(f"{world.instance(ONE)}/rendered", accept)).status_code == status


async def test_an_image_that_the_renderer_refuses_is_not_acceptable(world: World) -> None:
    world.renderer.impossible.add(WSI)
    answer = await world.get(f"{world.instance(WSI)}/rendered")
    assert answer.status_code == 406
