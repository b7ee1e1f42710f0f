"""Accept headers for property tests: headers that follow the grammar, headers with each kind of mistake, and random text."""

from hypothesis import strategies as st

from gantry_standard.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from gantry_standard.http.media_types import ALIASES, BULKDATA, OFFERS

_NAMES = sorted({offer.media_type for offers in OFFERS.values() for offer in offers} | set(BULKDATA) | set(ALIASES))
_TYPES = st.sampled_from(
    [*_NAMES, "*/*", "image/*", "application/*", "text/*", "text/html", "application/pdf", "foo", "/", "*/json", "", "multipart/mixed"]
)
_SPACE = st.sampled_from(["", " ", "  ", "\t"])


def _quoted(value: str) -> st.SearchStrategy[str]:
    return st.sampled_from([value, f'"{value}"', f'"{value}', f" {value} "])


_PARAMETER = st.one_of(
    st.sampled_from(["0", "1", "0.5", "1.0", "0.001", "2", "-1", "abc", "", "1e-3"]).map(lambda q: f"q={q}"),
    st.sampled_from(["*", "", "1.2.3", *TRANSFER_SYNTAXES]).flatmap(_quoted).map(lambda uid: f"transfer-syntax={uid}"),
    _TYPES.flatmap(_quoted).map(lambda name: f"type={name}"),
    st.sampled_from(["level=1", "charset=utf-8", "boundary=x", "=", ";", "a", 'x="\\"', "TYPE=IMAGE/JP2"]),
)


@st.composite
def _ranges(draw: st.DrawFn) -> str:
    name = draw(st.one_of(_TYPES, st.just("multipart/related")))
    parameters = draw(st.lists(_PARAMETER, max_size=4))
    return "".join([name, *(f"{draw(_SPACE)};{draw(_SPACE)}{parameter}" for parameter in parameters)])


def accept_headers() -> st.SearchStrategy[str]:
    """Values that a header may hold: visible Latin-1, spaces and tabs."""
    noise = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
    lists = st.lists(_ranges(), max_size=6).map(", ".join)
    return st.one_of(lists, lists, noise)
