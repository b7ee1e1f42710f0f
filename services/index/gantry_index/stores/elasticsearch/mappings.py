"""Documents of the index store in Elasticsearch: their mappings, their ids, and the index terms by which they are matched."""

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
        # For a poison event: its name and its pack.
        # For a dead upload: its upload name and its object, and the time of the decision (in two fields if its bytes will be removed).
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
"""Mapping of the outbox. Its index does not belong to a generation, so that rows that are not published survive a reindex."""
WORKITEM_MAPPING = {
    "uid": KEYWORD,
    "sort_key": KEYWORD,
    "deleted": {"type": "boolean"},
    "dicom_json": KEPT,
    # The studies that the workitem refers to, and their number.
    "studies": KEYWORD,
    "studies_count": {"type": "integer"},
    "value": {"type": "keyword", "index": False, "doc_values": False},
    **TERMS,
}
KIND = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}
KEY_FIELDS = {Level.STUDY: ("study",), Level.SERIES: ("study", "series"), Level.INSTANCE: ("collection", "series", "sop")}
"""The key of a study is the field `study` in the documents of the study and its series, and `collection` in those of instances. `series` is
empty if the collection is a non-patient resource."""


def term_fields(index_terms: Iterable[Term]) -> dict[str, Any]:
    """Return the fields `terms` and `items` of a document."""
    plain: list[str] = []
    items: dict[int, tuple[str, list[str]]] = {}
    for term in index_terms:
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
    """Return a text for an upload name. The texts sort like upload names."""
    return f"{place[0]} {place[1]:020d}"


def poison_id(name: str) -> str:
    """Return the document id of a poison event. Elasticsearch allows ids of at most 512 bytes."""
    return f"poison {name}" if len(name.encode()) < 400 else f"poison {hashlib.sha256(name.encode()).hexdigest()}"


def change_id(sequence: int) -> str:
    """Return the document id of a row of the outbox."""
    return f"change {sequence}"


def settling_id(study: str) -> str:
    """Return the document id of a study that has not settled."""
    return f"settling {study}"


def pack_id(key: str) -> str:
    return f"pack {key}"
