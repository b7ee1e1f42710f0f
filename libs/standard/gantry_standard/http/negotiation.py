"""Content negotiation: turns an Accept header and an accept parameter into representations in order of preference.

A candidate is a media type, single or multipart, and a transfer syntax. `negotiate` orders the candidates. `plans` tells what each one
means for an instance that is stored in a certain transfer syntax. A handler sends the first that can be produced.

Source: PS3.18 §8.7.5 to §8.7.8; in addition `application/json` and repeated transfer-syntax parameters, which clients send.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from gantry_standard import errors
from gantry_standard.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from gantry_standard.http import parameters
from gantry_standard.http.media_types import (
    ALIASES,
    BULKDATA,
    DICOM,
    DICOM_JSON,
    JSON_NAMES,
    JSON_RESOURCES,
    NEVER_SENT,
    NO_DEFAULT,
    OCTET_STREAM,
    OFFERS,
    ONLY_DICOM,
    ONLY_RENDERED,
    ONLY_RENDERED_TOP,
    RENDERED_RESOURCES,
    SINGLE_MEANS_MULTIPART,
    ZIP,
    Offer,
    Resource,
    bulkdata_media_type,
)

STORED = "*"
"""Value of transfer-syntax that means any: the stored one is sent."""

MOST_RANGES = 64
"""Maximum number of media ranges of one header; the rest is ignored."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_PARAMETERS_WITH_MEANING = frozenset({"q", "type", "transfer-syntax", "charset", "boundary", "start", "start-info"})


@dataclass(frozen=True, slots=True)
class Range:
    """One media range of an Accept header or an accept parameter.

    Attributes:
        media_type: of the payload or, if `multipart`, of its parts; lower case, aliases resolved; may be */* or type/*.
        multipart: True for multipart/related, False for a single part, None for a range that covers both (`*/*`).
        transfer_syntaxes: as requested; `*` alone if it is among them; empty if there is no parameter.
        parameters: those without a negotiation rule.
    """

    media_type: str
    multipart: bool | None
    transfer_syntaxes: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...]
    quality: float

    @property
    def has_wildcard(self) -> bool:
        """Whether it is */* or type/*, or multipart of such."""
        return self.media_type.endswith("/*")

    def covers(self, offer: Offer, known_parameters: frozenset[str]) -> bool:
        """Return whether a representation is within this range, ignoring its transfer syntax."""
        if self.multipart is not None and self.multipart is not offer.multipart:
            return False
        if not _type_covers(self.media_type, offer.media_type) or (offer.by_name and self.has_wildcard):
            return False
        return all(pair in offer.parameters for pair in self.parameters if pair[0] in known_parameters)

    def specificity(self, known_parameters: frozenset[str]) -> int:
        """Return how specific it is: type/subtype;parameters > type/subtype > type/* > */* (§8.7.8.1)."""
        narrow = 2 if self.has_wildcard else 3
        if self.media_type == "*/*":
            narrow = 0 if self.multipart is None else 1
        asked = sum(1 for name, _ in self.parameters if name in known_parameters)
        syntax = 0 if not self.transfer_syntaxes else 1 if STORED in self.transfer_syntaxes else 2
        return narrow * 100 + asked * 10 + syntax

    def says(self, transfer_syntax: str) -> bool:
        """Return whether it allows this transfer syntax ("" for the default)."""
        asked = self.transfer_syntaxes
        return not asked or transfer_syntax in asked or (STORED in asked and transfer_syntax != "")


@dataclass(frozen=True, slots=True)
class Choice:
    """A representation that the client accepts.

    Attributes:
        transfer_syntax: a UID; `*` for any; "" if there is no parameter.
        preference: 0 for the best; among equal numbers the server chooses.
    """

    media_type: str
    multipart: bool
    transfer_syntax: str
    preference: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a choice means for one stored transfer syntax.

    Attributes:
        transfer_syntax_uid: of the payload.
        as_stored: no transcoding is needed.
    """

    media_type: str
    multipart: bool
    transfer_syntax_uid: str
    as_stored: bool


def _type_covers(wide: str, narrow: str) -> bool:
    return wide in ("*/*", narrow) or (wide.endswith("/*") and narrow.startswith(wide[:-1]))


def _parameters(pieces: Iterable[str]) -> list[tuple[str, str]]:
    """Return name, value pairs; invalid parameters are left out."""
    pairs = []
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if equals and _TOKEN.fullmatch(name.strip()):
            pairs.append((name.strip().lower(), parameters.unquote(value.strip()).strip()))
    return pairs


def _media_type(text: str) -> str:
    """Return a media type or range in lower case, or "" if it is invalid."""
    main, slash, sub = text.strip().lower().partition("/")
    if not slash or not _TOKEN.fullmatch(main) or not _TOKEN.fullmatch(sub) or (main == "*" and sub != "*"):
        return ""
    name = f"{main}/{sub}"
    return ALIASES.get(name, name)


def _parse_range(text: str) -> Range | None:
    first, *rest = parameters.split(text, ";")
    media_type = _media_type(first)
    pairs = _parameters(rest)
    qualities = [value for name, value in pairs if name == "q"]
    if not media_type or any(not _QUALITY.fullmatch(value) for value in qualities):
        return None
    multipart: bool | None = None if media_type == "*/*" else False
    if media_type.startswith("multipart/"):
        if media_type not in ("multipart/related", "multipart/*"):
            return None
        multipart = True
        media_type = _media_type(next((value for name, value in pairs if name == "type"), "*/*"))
        if not media_type:
            return None
    asked = tuple(value for name, value in pairs if name == "transfer-syntax")
    return Range(
        media_type,
        multipart,
        (STORED,) if STORED in asked else asked,
        tuple((name, value.lower()) for name, value in pairs if name not in _PARAMETERS_WITH_MEANING),
        float(qualities[0]) if qualities else 1.0,
    )


@lru_cache(1024)
def parse(text: str) -> tuple[Range, ...]:
    """Read a list of media ranges. Invalid entries are ignored (§8.7.5).

    Source: RFC 7231 §5.3.2; a trailing or doubled separator is tolerated.
    """
    ranges = (_parse_range(piece) for piece in parameters.split(text, ",")[:MOST_RANGES])
    return tuple(media_range for media_range in ranges if media_range is not None)


def _refuse_mixture(ranges: tuple[Range, ...]) -> None:
    dicom = [r.media_type for r in ranges if r.media_type in ONLY_DICOM]
    rendered = [r.media_type for r in ranges if r.media_type in ONLY_RENDERED or r.media_type.split("/")[0] == ONLY_RENDERED_TOP]
    if dicom and rendered:
        raise errors.BadRequest(
            f"{dicom[0]} is a DICOM media type and {rendered[0]} a rendered one; expected only one kind (PS3.18 section 8.7.5)"
        )


def _in_query(accept: str, header: tuple[Range, ...]) -> tuple[Range, ...]:
    """Return the ranges of an accept parameter that the header covers (§8.3.3.1)."""
    ranges = parse(accept)
    for media_range in ranges:
        if media_range.has_wildcard:
            raise errors.BadRequest(f"parameter accept holds {media_range.media_type}; expected media types without wildcards")
    return tuple(r for r in ranges if any(_covers_range(wide, r) for wide in header))


def _covers_range(wide: Range, narrow: Range) -> bool:
    return wide.quality > 0 and wide.multipart in (None, narrow.multipart) and _type_covers(wide.media_type, narrow.media_type)


def _known_parameters(offers: tuple[Offer, ...]) -> frozenset[str]:
    """Return the parameter names of all offers; other parameters are ignored as unsupported."""
    return frozenset(name for offer in offers for name, _ in offer.parameters)


def quality_of(offer: Offer, ranges: Iterable[Range], known_parameters: frozenset[str], transfer_syntax: str = "") -> float:
    """Return the q of the most specific range that matches a representation; 0 if none does (§8.7.8.1)."""
    best, quality = -1, 0.0
    for media_range in ranges:
        specificity = media_range.specificity(known_parameters)
        if specificity > best and media_range.says(transfer_syntax) and media_range.covers(offer, known_parameters):
            best, quality = specificity, media_range.quality
    return quality


def _candidates(ranges: tuple[Range, ...], resource: Resource) -> list[tuple[float, int, Offer, str]]:
    """Return (quality, tie, offer, transfer syntax): tie is 0 if the server chooses, else the rank in what */* covers."""
    offers = OFFERS[resource]
    known = _known_parameters(offers)
    weights: dict[tuple[Offer, str], tuple[float, int]] = {}
    for media_range in sorted(ranges, key=lambda r: -r.specificity(known)):
        place = 0
        for offer in offers:
            if not media_range.covers(offer, known):
                continue
            # */* selects the default of the resource, then the rest in the server's order (§8.7.7).
            place += 1 if media_range.media_type == "*/*" and resource not in NO_DEFAULT else 0
            for transfer_syntax in media_range.transfer_syntaxes or ("",):
                quality = quality_of(offer, ranges, known, transfer_syntax)
                if quality > 0:
                    weights.setdefault((offer, transfer_syntax), (quality, place))
    return [(quality, place, offer, transfer_syntax) for (offer, transfer_syntax), (quality, place) in weights.items()]


def _ranked(ranges: tuple[Range, ...], resource: Resource, begin: int) -> list[Choice]:
    candidates = sorted(_candidates(ranges, resource), key=lambda c: (-c[0], c[1]))
    choices: list[Choice] = []
    rank, last = begin - 1, (0.0, -1)
    for quality, place, offer, transfer_syntax in candidates:
        if (quality, place) != last:
            rank, last = rank + 1, (quality, place)
        choices.append(Choice(offer.media_type, offer.multipart, transfer_syntax, rank))
    return choices


def _usable(ranges: tuple[Range, ...], resource: Resource) -> tuple[Range, ...]:
    """Return the ranges that are valid for a resource, as it interprets them."""
    if resource in RENDERED_RESOURCES:
        # transfer-syntax is not permitted on a rendered media type: such a range is invalid (§8.7.4).
        ranges = tuple(r for r in ranges if not r.transfer_syntaxes)
    if resource in JSON_RESOURCES:
        ranges = tuple(Range(DICOM_JSON, r.multipart, (), (), r.quality) if r.media_type in JSON_NAMES else r for r in ranges)
    if resource in SINGLE_MEANS_MULTIPART:
        ranges = tuple(Range(r.media_type, None, (), r.parameters, r.quality) for r in ranges)
    return ranges


@lru_cache(4096)
def negotiate(resource: Resource, accept: str, query_accept: str | None = None, strict: bool = False) -> tuple[Choice, ...]:
    """Return the representations of a resource that a client accepts, best first.

    Args:
        accept: the Accept header; "" if it is missing.
        query_accept: the accept parameter, percent-decoded; None if it is missing. Its entries precede those of the header.
        strict: a missing Accept header is not acceptable (§8.7.5) instead of meaning */*, unless there is an accept parameter.

    Raises:
        errors.BadRequest: DICOM and rendered media types are mixed; a wildcard in the parameter.
        errors.NotAcceptable: no representation of the resource is accepted.

    Source: PS3.18 §8.7.8.1.
    """
    if not accept.strip() and strict and query_accept is None:
        raise errors.NotAcceptable(f"the request has no Accept header; {available(resource)}")
    header = parse(accept if accept.strip() else "*/*")
    _refuse_mixture(header)
    choices: list[Choice] = []
    if query_accept is not None:
        asked = _in_query(query_accept, header)
        _refuse_mixture(asked)
        choices = _ranked(_usable(asked, resource), resource, 0)
    if accept.strip() or not strict:
        choices += _ranked(_usable(header, resource), resource, len(choices))
    if not choices:
        raise errors.NotAcceptable(f"nothing of the Accept header can be produced; {available(resource)}")
    return tuple(dict.fromkeys(choices))


@lru_cache(1024)
def select(resource: Resource, accept: str, query_accept: str | None = None, strict: bool = False) -> Choice:
    """Return the preferred representation of a resource without transfer syntaxes, such as metadata or search results.

    Of several with equal preference, DICOM JSON. `application/json` counts as application/dicom+json.
    Arguments and errors as `negotiate`.
    """
    choices = negotiate(resource, accept, query_accept, strict)
    places = {(offer.media_type, offer.multipart): place for place, offer in enumerate(OFFERS[resource])}
    return min(choices, key=lambda choice: (choice.preference, places[choice.media_type, choice.multipart]))


def _targets(choice: Choice, stored: str, may_stay: bool) -> tuple[str, ...]:
    """Return the transfer syntaxes of a choice, best first (§8.7.8.2); none if the media type does not allow them."""
    asked, media_type = choice.transfer_syntax, choice.media_type
    if media_type == ZIP:
        return (stored,) if asked in ("", STORED, stored) else ()
    if media_type in (DICOM, OCTET_STREAM):
        if asked == STORED:
            return (stored,)
        if asked:
            return () if asked in NEVER_SENT else (asked,)
        return (EXPLICIT_VR_LITTLE_ENDIAN, stored) if may_stay else (EXPLICIT_VR_LITTLE_ENDIAN,)
    known = BULKDATA.get(media_type, ())
    if asked == STORED:
        return (stored,) if stored in known else known[:1]
    if asked:
        return (asked,) if asked in known else ()
    # The default of the media type. A lossy frame is sent as stored (§8.7.3.4): transcoding would only enlarge it.
    if stored in known:
        return (stored,) if stored == known[0] or may_stay else (known[0], stored)
    return known[:1]


@lru_cache(4096)
def plans(choices: tuple[Choice, ...], stored_transfer_syntax_uid: str, may_stay: bool = False) -> tuple[Plan, ...]:
    """Return the plans of the choices for an instance, best first. Among equal preferences, plans without transcoding come first.

    Args:
        stored_transfer_syntax_uid: in which the bytes can be sent without transcoding.
        may_stay: if the client names no transfer syntax, the stored one may be sent when the default cannot be produced: pixel data that is
            lossy, or too long for Explicit VR Little Endian (§8.7.3.4).
    """
    made: list[tuple[int, int, Plan]] = []
    for choice in choices:
        for place, target in enumerate(_targets(choice, stored_transfer_syntax_uid, may_stay)):
            as_stored = target == stored_transfer_syntax_uid
            rank = 2 if place else int(not as_stored)
            made.append((choice.preference, rank, Plan(choice.media_type, choice.multipart, target, as_stored)))
    made.sort(key=lambda entry: entry[:2])
    return tuple(dict.fromkeys(plan for _, _, plan in made))


def available(resource: Resource, stored_transfer_syntax_uid: str = "") -> str:
    """Return a sentence that lists the available representations, for a 406.

    Args:
        stored_transfer_syntax_uid: adds the representation that needs no transcoding.
    """
    names = [f'multipart/related; type="{o.media_type}"' if o.multipart else o.media_type for o in OFFERS[resource]]
    sentence = f"{resource.value} can be had as {', '.join(names)}"
    if not stored_transfer_syntax_uid:
        return sentence
    return f"{sentence}; stored as {bulkdata_media_type(stored_transfer_syntax_uid)} in transfer syntax {stored_transfer_syntax_uid}"
