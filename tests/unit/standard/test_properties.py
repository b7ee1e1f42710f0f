"""What holds for any input: every Accept header is answered, every split of a payload gives the same parts."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gantry_standard import errors
from gantry_standard.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from gantry_standard.http.media_types import Resource
from gantry_standard.http.multipart import End, PartBegin, PartData, PartEnd, Reader
from gantry_standard.http.negotiation import negotiate, plans
from tests.support.accept_headers import accept_headers

UNHURRIED = settings(deadline=None, max_examples=400, database=None)


@UNHURRIED
@given(accept_headers(), st.none() | accept_headers(), st.booleans(), st.sampled_from(list(TRANSFER_SYNTAXES)), st.booleans())
def test_any_accept_header_gives_an_answer_for_every_resource(
    accept: str, query: str | None, strict: bool, stored: str, may_stay: bool
) -> None:
    for resource in Resource:
        try:
            choices = negotiate(resource, accept, query, strict)
        except (errors.NotAcceptable, errors.BadRequest):
            continue
        assert choices
        assert [choice.preference for choice in choices] == sorted(choice.preference for choice in choices)
        for plan in plans(choices, stored, may_stay):
            assert plan.as_stored == (plan.transfer_syntax_uid == stored)


@st.composite
def payloads(draw: st.DrawFn) -> tuple[str, list[bytes], list[bytes]]:
    """A boundary, the contents of the parts, and the payload in chunks."""
    boundary = draw(st.sampled_from(["B", "Boundary9", "-", "a b", "--", "'()+_,-./:=?"]))
    delimiter = f"--{boundary}".encode()
    bits = st.sampled_from([b"\r", b"\n", b"-", b"--", boundary.encode(), delimiter[:-1], b"\r\n" + delimiter[:-1], b"\r\n\r\n", b"data"])
    content = st.lists(bits | st.binary(max_size=40), max_size=12).map(b"".join).filter(lambda data: b"\n" + delimiter not in b"\n" + data)
    contents = draw(st.lists(content, max_size=5))
    payload = b"".join(delimiter + b"\r\nContent-Type: a/b\r\n\r\n" + data + b"\r\n" for data in contents) + delimiter + b"--\r\n"
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=30)))
    edges = [0, *cuts, len(payload)]
    return boundary, contents, [payload[begin:end] for begin, end in pairwise(edges)]


@UNHURRIED
@given(payloads())
def test_any_split_of_a_payload_gives_the_same_parts(made: tuple[str, list[bytes], list[bytes]]) -> None:
    boundary, contents, chunks = made
    reader, found, ended = Reader(boundary), [], 0
    for chunk in chunks:
        for event in reader.feed(chunk):
            if isinstance(event, PartBegin):
                assert event.headers == {"content-type": "a/b"}
                found.append(b"")
            elif isinstance(event, PartData):
                found[-1] += bytes(event.data)
            elif isinstance(event, PartEnd):
                ended += 1
            else:
                assert isinstance(event, End)
    reader.close()
    assert found == contents
    assert ended == len(contents)
