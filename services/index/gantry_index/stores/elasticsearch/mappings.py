"""Documents of the index store in Elasticsearch: their mappings, their ids, and the terms by which they are matched."""

import hashlib
from collections.abc import Iterable
from typing import Any

from gantry_index.stores.port import Place
from gantry_standard.query.levels import Level
from gantry_standard.query.terms import Term

SEPARATOR, AFTER_SEPARATOR = "\x1f", "\x20"

KEYWORD = {"type": "keyword"}
MATCHED = {"type": "keyword", "doc_values": False}
KEPT = {"type": "binary"}
TERMS = {
    "terms": MATCHED,
    "items": {"type": "nested", "properties": {"path": MATCHED, "terms": MATCHED}},
}
MAPPINGS: dict[str, dict[str, Any]] = {
    "instances": {
        "collection": KEYWORD,
        "series": KEYWORD,
        "sop": KEYWORD,
        "number": {"type": "long"},
        "version": {"type": "long", "index": False},
        "deleted": {"type": "boolean"},
        "record": KEPT,
        "attributes": KEPT,
        "fragment": KEPT,
        **TERMS,
    },
    "series": {"study": KEYWORD, "series": KEYWORD, "number": {"type": "long"}, "summary": KEPT, "attributes": KEPT, **TERMS},
    "studies": {
        "study": KEYWORD,
        "sort_key": KEYWORD,
        "applied": {"type": "long", "index": False},
        "summary": KEPT,
        "attributes": KEPT,
        **TERMS,
    },
    "meta": {
        "kind": KEYWORD,
        "value": {"type": "keyword", "index": False, "doc_values": False},
        # Of a poison event: its name and its pack.
        # Of what is dead: its name and where it lies; when that was decided, twice where its bytes go after a time.
        "name": KEYWORD,
        "lies_in": KEYWORD,
        "decided": {"type": "long", "index": False, "doc_values": False},
        "due": {"type": "long"},
    },
}
OUTBOX_MAPPING: dict[str, Any] = {
    "kind": KEYWORD,
    "reader": KEYWORD,
    "study": KEYWORD,
    "sequence": {"type": "long"},
    "data": KEPT,
}
"""Of one index that belongs to no generation: rows that are not published yet stay when the index is rebuilt."""
WORKITEM_MAPPING = {
    "uid": KEYWORD,
    "sort_key": KEYWORD,
    "deleted": {"type": "boolean"},
    "dicom_json": KEPT,
    # The studies that it refers to, and how many they are.
    "studies": KEYWORD,
    "studies_count": {"type": "integer"},
    "value": {"type": "keyword", "index": False, "doc_values": False},
    **TERMS,
}
KIND = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}
KEY_FIELDS = {Level.STUDY: ("study",), Level.SERIES: ("study", "series"), Level.INSTANCE: ("collection", "series", "sop")}
"""A study's key is `study` in its own document and in those of its series, and a `collection` in those of instances. `series` is empty
where that is a non-patient resource."""


def term_fields(found: Iterable[Term]) -> dict[str, Any]:
    """Return the fields `terms` and `items` of a document."""
    plain: list[str] = []
    items: dict[int, tuple[str, list[str]]] = {}
    for term in found:
        text = term.path + SEPARATOR + term.value
        if not term.root:
            plain.append(text)
            continue
        items.setdefault(term.root, (term.path.partition(".")[0], []))[1].append(text)
        if term.item != term.root:
            items.setdefault(term.item, (term.path.rpartition(".")[0], []))[1].append(text)
    return {"terms": plain, "items": [{"path": path, "terms": texts} for path, texts in items.values()]}


def series_id(study: str, series: str) -> str:
    return f"{study}/{series}"


def dead_id(place: Place) -> str:
    return f"dead {place[0]} {place[1]}"


def name_of(place: Place) -> str:
    """Return a name whose order is that of places."""
    return f"{place[0]} {place[1]:020d}"


def poison_id(name: str) -> str:
    """Return the id of a poison event: of an id of Elasticsearch at most 512 bytes are allowed."""
    return f"poison {name}" if len(name.encode()) < 400 else f"poison {hashlib.sha256(name.encode()).hexdigest()}"


def change_id(sequence: int) -> str:
    """Return the id of a row of the outbox."""
    return f"change {sequence}"


def settling_id(study: str) -> str:
    """Return the id of a study that has not settled."""
    return f"settling {study}"


def pack_id(key: str) -> str:
    return f"pack {key}"
