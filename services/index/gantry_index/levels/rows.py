"""Search rows: selects the attributes of each level that a response has, and encodes them as DICOM JSON.

Source: PS3.18 §10.6.3.3, Tables 10.6.3-3 to 10.6.3-5; for workitems §11.9.3 and PS3.4 Table CC.2.5-3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gantry_index.levels.summary import BASE_MARK, SERIES_UID, SOP_CLASS, SOP_UID, STUDY_UID, Attributes, Element, encoded
from gantry_standard import workitems
from gantry_standard.dicom.collections import instance_path, is_study
from gantry_standard.dicom.pydicom_tables import tag_of
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import Query
from gantry_standard.query.query_attributes import ENTITY, RETURNED, Entity, Returned, is_private, vr_of

RETRIEVE_URL = tag_of("RetrieveURL")
AVAILABILITY = tag_of("InstanceAvailability")
SPECIFIC_CHARACTER_SET = tag_of("SpecificCharacterSet")
ONLINE: Element = {"vr": "CS", "Value": ["ONLINE"]}
UTF_8: Element = {"vr": "CS", "Value": ["ISO_IR 192"]}

REQUIRED = {
    level: tuple((tag, {"vr": vr_of(tag)}) for tag, row in rows.items() if row.returned is Returned.REQUIRED)
    for level, rows in RETURNED.items()
}
KNOWN = {level: tuple(tag for tag, row in rows.items() if row.returned is Returned.KNOWN) for level, rows in RETURNED.items()}
ALL = {level: tuple(tag for tag, row in rows.items() if row.returned is not Returned.REQUIRED) for level, rows in RETURNED.items()}


@dataclass(frozen=True, slots=True)
class Identity:
    """Collection and UIDs of a match; below its level they are empty, and a non-patient resource has no series."""

    collection: str
    series_instance_uid: str = ""
    sop_instance_uid: str = ""

    @property
    def path(self) -> str:
        """Path below the base URL."""
        if self.sop_instance_uid:
            return instance_path(self.collection, self.series_instance_uid, self.sop_instance_uid)
        path = f"/studies/{self.collection}"
        return path + (f"/series/{self.series_instance_uid}" if self.series_instance_uid else "")


def is_of_resource(query: Query) -> bool:
    """Whether a search is for instances of a non-patient resource."""
    return bool(query.collection) and not is_study(query.collection)


def levels_needed(query: Query) -> set[Level]:
    """Return the levels whose attributes are in the rows."""
    if is_of_resource(query):
        return {Level.INSTANCE}
    needed = {query.level, *query.include_levels}
    for path in query.include_fields:
        needed.add(ENTITY.get(path[:8], Entity.INSTANCE).level)
    return {level for level in needed if level.value <= query.level.value}


def needs_metadata(query: Query) -> bool:
    """Whether a row shows attributes that are not tabulated: any of an instance; of a study or series private ones, as they stand in its
    instance with the smallest SOP Instance UID. Nothing is tabulated of instances of non-patient resources.
    """
    if is_of_resource(query):
        return query.include_all or bool(query.include_fields)
    return any(path[:8] not in ENTITY and (query.level is Level.INSTANCE or is_private(path[:8])) for path in query.include_fields)


def row(query: Query, identity: Identity, attributes: Mapping[Level, Attributes], metadata: Attributes | None = None) -> bytes:
    """Return one row.

    Args:
        attributes: of each level in `levels_needed`.
        metadata: the whole data set when `needs_metadata` and it is at hand.
    """
    if is_of_resource(query):
        return _resource_row(query, identity, attributes[Level.INSTANCE], metadata or {})
    answer: dict[str, Element] = {}
    for level in (*query.include_levels, query.level):
        own = attributes[level]
        for tag, empty in REQUIRED[level]:
            answer[tag] = own.get(tag, empty)
        for tag in ALL[level] if query.include_all else KNOWN[level]:
            if tag in own:
                answer[tag] = own[tag]
    for path in query.include_fields:
        _include(answer, path, query.level, attributes, metadata or {})
    answer[STUDY_UID] = {"vr": "UI", "Value": [identity.collection]}
    if identity.series_instance_uid:
        answer[SERIES_UID] = {"vr": "UI", "Value": [identity.series_instance_uid]}
    if identity.sop_instance_uid:
        answer[SOP_UID] = {"vr": "UI", "Value": [identity.sop_instance_uid]}
    answer[AVAILABILITY] = ONLINE
    answer[RETRIEVE_URL] = {"vr": "UR", "Value": [BASE_MARK + identity.path]}
    return _finished(answer)


def _resource_row(query: Query, identity: Identity, own: Attributes, metadata: Attributes) -> bytes:
    """Return the row of an instance of a non-patient resource: SOP class, UID, URL, and the requested attributes."""
    answer: dict[str, Element] = {**metadata} if query.include_all else {}
    for path in query.include_fields:
        tag, _, creator = path.partition(":")
        if creator and len(tag) == len(SOP_UID):
            _include_private(answer, tag, creator, metadata)
        else:
            _add(answer, tag, metadata.get(tag[:8]))
    answer[SOP_CLASS] = own.get(SOP_CLASS, {"vr": "UI"})
    answer[SOP_UID] = {"vr": "UI", "Value": [identity.sop_instance_uid]}
    answer[RETRIEVE_URL] = {"vr": "UR", "Value": [BASE_MARK + identity.path]}
    return _finished(answer)


def _include(answer: dict[str, Element], path: str, level: Level, attributes: Mapping[Level, Attributes], metadata: Attributes) -> None:
    path, _, creator = path.partition(":")
    tag = path[:8]
    entity = ENTITY.get(tag)
    if creator and path == tag:
        _include_private(answer, tag, creator, metadata)
        return
    if entity is not None and entity.level.value <= level.value:
        _add(answer, path, attributes[entity.level].get(tag))
    elif entity is None and level is Level.INSTANCE:
        _add(answer, path, metadata.get(tag))


def _include_private(answer: dict[str, Element], tag: str, creator: str, metadata: Attributes) -> None:
    """Add a private attribute and its creator, in the block in which the instance has them."""
    group = tag[:4]
    for block in (key for key in metadata if key[:6] == f"{group}00" and "10" <= key[6:] <= "FF"):
        if metadata[block].get("Value") == [creator]:
            answer[block] = metadata[block]
            answer[f"{group}{block[6:]}{tag[6:]}"] = metadata.get(f"{group}{block[6:]}{tag[6:]}", {"vr": "UN"})


def _add(answer: dict[str, Element], path: str, element: Element | None) -> None:
    """Add an attribute. If the path goes into a sequence that the row does not have completely, add only what the path names."""
    tag, _, rest = path.partition(".")
    if element is None:
        answer.setdefault(tag, {"vr": vr_of(tag)})
    elif not rest:
        answer[tag] = element
    else:
        present = answer.get(tag, {"vr": "SQ"})
        items = present.get("Value") or [{} for _ in element.get("Value", ())]
        for item, source in zip(items, element.get("Value", ()), strict=False):
            if rest.partition(".")[0] in source:
                _add(item, rest, source[rest.partition(".")[0]])
        answer[tag] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}


def _finished(answer: dict[str, Element]) -> bytes:
    text = encoded(answer)
    if text.isascii():
        return text
    answer[SPECIFIC_CHARACTER_SET] = UTF_8
    return encoded(answer)


WORKITEM = {row.tag: row for row in workitems.below(())}
WORKITEM_EMPTY = tuple((tag, {"vr": vr_of(tag)}) for tag, row in WORKITEM.items() if row.returned in ("1", "2"))


def workitem_row(query: Query, workitem: Mapping[str, Any]) -> bytes:
    """Return the row of a workitem: return keys of type 1 and 2 always, others if they have a value or are requested."""
    answer: dict[str, Element] = {tag: workitem.get(tag, empty) for tag, empty in WORKITEM_EMPTY}
    for tag, element in workitem.items():
        known = WORKITEM.get(tag)
        if query.include_all or (known is not None and known.returned in ("1C", "2C")):
            answer[tag] = element
    for path in query.include_fields:
        _add(answer, path, workitem.get(path[:8]))
    return _finished(answer)
