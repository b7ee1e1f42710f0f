"""Makers: sources by role, and the kind of content that decides."""

import asyncio
from typing import Any

import numpy as np
import pytest

from gantry.renderer.v1 import renderer_pb2
from gantry_renderer.picture.draw import Presentation
from gantry_renderer.settings import RendererSettings
from gantry_renderer.transactions.makers.table import MAKERS
from gantry_renderer.transactions.render import Rendering
from gantry_renderer.transactions.sources import MOST_SOURCES, Sources, parse_sources
from gantry_renderer.workers.pool import Admission
from gantry_runtime.byte_bounded_cache import ByteBoundedCache
from gantry_runtime.rpc import rpc_errors
from gantry_standard import errors
from gantry_standard.dicom.content_kinds import ContentKind
from tests.support import stored_instances
from tests.support.images import file_of, image_dataset

SUBJECT, REFERENCED = renderer_pb2.SOURCE_ROLE_SUBJECT, renderer_pb2.SOURCE_ROLE_REFERENCED
PRESENTATION = renderer_pb2.SOURCE_ROLE_PRESENTATION
GSPS, VIDEO_ENDOSCOPIC, SR = (f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("11.1", "77.1.1.1", "88.33"))
TIMEOUT_S = 60


def image(served: Any, role: int = SUBJECT, value: int = 7) -> renderer_pb2.Source:
    source: renderer_pb2.Source = served.store(file_of(image_dataset(np.full((1, 4, 6), value, "<u2"))))
    source.role = role
    return source


def of_class(source: renderer_pb2.Source, sop_class_uid: str) -> renderer_pb2.Source:
    source.stored.sop_class_uid = sop_class_uid
    return source


async def rendered(served: Any, sources: list[renderer_pb2.Source], frame_number: int = 1) -> bytes:
    request = renderer_pb2.RenderRequest(sources=sources, media_type="image/png", frame_number=frame_number)
    with rpc_errors.translated("renderer"):
        answer = await served.stub.Render(request, timeout=TIMEOUT_S)
    return bytes(answer.image)


async def test_an_image_needs_no_other_source_and_no_role(served: Any) -> None:
    unspecified, subject = image(served, renderer_pb2.SOURCE_ROLE_UNSPECIFIED), image(served)
    assert (await rendered(served, [unspecified])).startswith(b"\x89PNG")
    assert await rendered(served, [subject]) == await rendered(served, [unspecified])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], "0 subjects"),
        ([REFERENCED], "0 subjects"),
        ([SUBJECT, SUBJECT], "2 subjects"),
        ([SUBJECT, 9], "1 sources of unknown role"),
        ([SUBJECT, *[REFERENCED] * MOST_SOURCES], f"more than {MOST_SOURCES}"),
    ],
)
async def test_sources_that_do_not_fit_together_are_a_bad_request(served: Any, roles: list[int], message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message):
        await rendered(served, [image(served, role) for role in roles])


async def test_kinds_without_a_maker_are_not_acceptable_for_the_reason_of_their_pixels(served: Any) -> None:
    report = of_class(image(served), SR)
    report.stored.layout.ClearField("frames")
    with pytest.raises(errors.NotAcceptable, match="has no pixel data"):
        await rendered(served, [report])
    video = of_class(image(served), VIDEO_ENDOSCOPIC)
    video.stored.layout.wire_transfer_syntax_uid = "1.2.840.10008.1.2.4.102"
    with pytest.raises(errors.NotAcceptable, match=r"pixel data in 1\.2\.840\.10008\.1\.2\.4\.102 cannot be decoded"):
        await rendered(served, [video])
    with pytest.raises(errors.NotFound, match="1 frames"):
        await rendered(served, [video], frame_number=2)
    with pytest.raises(errors.NotAcceptable, match="of the kind presentation state"):
        await rendered(served, [of_class(image(served), GSPS)])


class Names:
    """A maker that answers with the objects of its sources."""

    def __init__(self, reader: object, pool: object) -> None:
        pass

    async def make(self, sources: Sources, frame_number: int, presentation: Presentation) -> bytes:
        groups = ([sources.subject], sources.referenced, sources.presentations)
        return "|".join(",".join(one.object_key for one in group) for group in groups).encode()


async def test_a_row_is_all_that_another_kind_needs(serve_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, ContentKind.PRESENTATION_STATE, Names)
    served = await serve_with(RendererSettings(renderer_workers=1))
    state = of_class(image(served), GSPS)
    first, second, other = image(served, REFERENCED), image(served, REFERENCED), image(served, PRESENTATION)
    assert await rendered(served, [first, state, second, other]) == b"packs/1.pack|packs/2.pack,packs/3.pack|packs/4.pack"
    # Another source makes another rendering, which is cached by itself
    assert await rendered(served, [first, state]) == b"packs/1.pack|packs/2.pack|"


async def test_a_request_that_comes_as_the_work_ends_does_not_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made, later = [], []

    class Counts(Names):
        async def make(self, sources: Sources, frame_number: int, presentation: Presentation) -> bytes:
            made.append(frame_number)
            asyncio.get_running_loop().call_soon(lambda: later.append(asyncio.ensure_future(ask())))
            return b"image"

    monkeypatch.setitem(MAKERS, ContentKind.IMAGE, Counts)
    source = stored_instances.store(file_of(image_dataset(np.zeros((1, 4, 6), "<u2"))), "packs/1.pack").source
    rendering = Rendering(None, None, Admission(1, "frames"), ByteBoundedCache[bytes](1 << 20, len))  # type: ignore[arg-type]

    async def ask() -> bytes:
        return await rendering.render(parse_sources([source]), 1, Presentation("image/png"))

    assert await ask() == b"image"
    assert await asyncio.gather(*later) == [b"image"]
    assert made == [1]
