"""Summaries of studies and series: counts, and attributes that are gathered from their instances.

If instances have different values, the non-empty value of the smallest SOP Instance UID is used. Both stores hold the summaries as JSON,
and derive search rows and index terms from them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from gantry_index.stores.port import WorkitemDocument
from gantry_standard import errors
from gantry_standard.dicom.collections import is_study
from gantry_standard.dicom.pydicom_tables import tag_of
from gantry_standard.query import terms
from gantry_standard.query.levels import Level
from gantry_standard.query.query_attributes import COMPUTED, RETURNED
from gantry_standard.query.terms import Term

BASE_MARK = "\ufdd0"
"""Represents the byte 0x00 in decoded JSON. It is a Unicode noncharacter, which no value may contain."""

Element = dict[str, Any]
Attributes = dict[str, Element]

STUDY_DATE, STUDY_TIME = tag_of("StudyDate"), tag_of("StudyTime")
STUDY_UID, SERIES_UID, SOP_UID = tag_of("StudyInstanceUID"), tag_of("SeriesInstanceUID"), tag_of("SOPInstanceUID")
MODALITY, SOP_CLASS = tag_of("Modality"), tag_of("SOPClassUID")
SERIES_NUMBER, INSTANCE_NUMBER = tag_of("SeriesNumber"), tag_of("InstanceNumber")
MODALITIES, SOP_CLASSES = tag_of("ModalitiesInStudy"), tag_of("SOPClassesInStudy")
SERIES_IN_STUDY, INSTANCES_IN_STUDY = tag_of("NumberOfStudyRelatedSeries"), tag_of("NumberOfStudyRelatedInstances")
INSTANCES_IN_SERIES = tag_of("NumberOfSeriesRelatedInstances")
START_DATE_TIME = tag_of("ScheduledProcedureStepStartDateTime")

KEPT = {level: frozenset(rows) - COMPUTED for level, rows in RETURNED.items()}
ABOVE_INSTANCE = KEPT[Level.STUDY] | KEPT[Level.SERIES]
UID_COLUMNS = frozenset({STUDY_UID, SERIES_UID, SOP_UID})
"""Tags that are never index terms, because both stores have columns for them."""
NOT_TERMS_OF_INSTANCE = (ABOVE_INSTANCE - KEPT[Level.INSTANCE]) | UID_COLUMNS
"""Tags that are not index terms of an instance of a study, because they are matched in its study or series."""


def not_terms_of(collection: str) -> frozenset[str]:
    """Return the tags that are not index terms of the instances of a collection."""
    return NOT_TERMS_OF_INSTANCE if is_study(collection) else UID_COLUMNS


def decoded(dicom_json: bytes) -> Attributes:
    """Return a decoded DICOM JSON object, with BASE_MARK in place of 0x00.

    Raises:
        ValueError: the bytes are not JSON.
    """
    dataset: Attributes = orjson.loads(dicom_json.replace(b"\0", BASE_MARK.encode()))
    return dataset


@contextmanager
def parsing(sop_instance_uid: str) -> Iterator[None]:
    """Translate exceptions while the DICOM JSON of an instance is parsed to CorruptInstance, because every retry would fail, too.

    Raises:
        errors.CorruptInstance: the DICOM JSON cannot be parsed.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise errors.CorruptInstance(f"the DICOM JSON of instance {sop_instance_uid} cannot be parsed: {type(error).__name__}") from error


def encoded(dataset: Mapping[str, Any]) -> bytes:
    """Return an encoded DICOM JSON object with sorted keys, and 0x00 in place of BASE_MARK."""
    return orjson.dumps(dataset, option=orjson.OPT_SORT_KEYS).replace(BASE_MARK.encode(), b"\0")


def tabulated(dataset: Attributes) -> Attributes:
    """Return those attributes with a value that a search returns without reading the metadata."""
    every = ABOVE_INSTANCE | KEPT[Level.INSTANCE]
    return {tag: element for tag, element in dataset.items() if tag in every and (element.get("Value"))}


def first(attributes: Attributes, tag: str) -> str:
    """Return the first value of an attribute as text; "" if there is none."""
    values = attributes.get(tag, {}).get("Value") or [""]
    return "" if values[0] is None else str(values[0])


def sort_number(attributes: Attributes, tag: str, absent: int) -> int:
    """Return the sort value of a Series or Instance Number; `absent` if there is none."""
    try:
        return max(min(int(first(attributes, tag)), absent - 1), -absent)
    except ValueError:
        return absent


@dataclass(slots=True)
class Gathered:
    """Gathered attributes of one level.

    Attributes:
        holders: by tag, the SOP Instance UID from which the element is taken.
        elements: by tag, the element.
        is_changed: whether an element has changed since this object was created.
    """

    level: Level
    holders: dict[str, str] = field(default_factory=dict)
    elements: Attributes = field(default_factory=dict)
    is_changed: bool = False
    _state: dict[str, Any] | None = None

    def add(self, sop_instance_uid: str, attributes: Attributes) -> None:
        """Add the attributes of an instance that no instance has yet, or only instances with a greater UID."""
        holders, elements = self.holders, self.elements
        for tag in KEPT[self.level]:
            element = attributes.get(tag)
            if element is not None and (tag not in holders or sop_instance_uid <= holders[tag]):
                self.is_changed = self.is_changed or elements.get(tag) != element
                holders[tag] = sop_instance_uid
                elements[tag] = element
                self._state = None

    def state(self) -> dict[str, Any]:
        """Return the state for `restored`: a list of UIDs, by tag the index of its holder, and the elements."""
        if self._state is None:
            uids = sorted(set(self.holders.values()))
            number = {uid: index for index, uid in enumerate(uids)}
            self._state = {"uids": uids, "of": {tag: number[uid] for tag, uid in self.holders.items()}, "elements": self.elements}
        return self._state

    @classmethod
    def restored(cls, level: Level, state: Mapping[str, Any]) -> "Gathered":
        """Return the object that `state` described."""
        return cls(level, {tag: state["uids"][number] for tag, number in state["of"].items()}, state["elements"])


@dataclass(slots=True)
class SeriesSummary:
    """One series of a study."""

    gathered: Gathered = field(default_factory=lambda: Gathered(Level.SERIES))
    instances: int = 0

    def add(self, sop_instance_uid: str, attributes: Attributes) -> None:
        """Count an instance and take over its attributes."""
        self.gathered.add(sop_instance_uid, attributes)
        self.instances += 1

    @property
    def modality(self) -> str:
        """Modality (0008,0060); "" if there is none."""
        return first(self.gathered.elements, MODALITY)

    def attributes(self) -> Attributes:
        """Return all attributes of the series that search rows can have."""
        return {**self.gathered.elements, INSTANCES_IN_SERIES: {"vr": "IS", "Value": [self.instances]}}

    def to_json(self) -> bytes:
        """Return it as kept."""
        return orjson.dumps({**self.gathered.state(), "instances": self.instances})

    @classmethod
    def from_json(cls, text: bytes | str) -> "SeriesSummary":
        """Return what `to_json` kept."""
        state = orjson.loads(text)
        return cls(Gathered.restored(Level.SERIES, state), state["instances"])


@dataclass(slots=True)
class StudySummary:
    """One study. `modalities` has the Modality of each Series Instance UID, `classes` the number of instances of each SOP Class UID."""

    gathered: Gathered = field(default_factory=lambda: Gathered(Level.STUDY))
    instances: int = 0
    modalities: dict[str, str] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)

    def add(self, sop_instance_uid: str, attributes: Attributes) -> None:
        """Count an instance and take over its attributes."""
        self.gathered.add(sop_instance_uid, attributes)
        self.instances += 1
        sop_class_uid = first(attributes, SOP_CLASS)
        self.classes[sop_class_uid] = self.classes.get(sop_class_uid, 0) + 1

    def attributes(self) -> Attributes:
        """Return all attributes of the study that search rows can have."""
        modalities = sorted(set(self.modalities.values()) - {""})
        return {
            **self.gathered.elements,
            MODALITIES: {"vr": "CS", "Value": modalities} if modalities else {"vr": "CS"},
            SOP_CLASSES: {"vr": "UI", "Value": sorted(self.classes)},
            SERIES_IN_STUDY: {"vr": "IS", "Value": [len(self.modalities)]},
            INSTANCES_IN_STUDY: {"vr": "IS", "Value": [self.instances]},
        }

    @property
    def sort_key(self) -> str:
        """Study Date and Study Time as text that sorts by time; "" if there is no date."""
        try:
            date = terms.date(first(self.gathered.elements, STUDY_DATE))
        except ValueError:
            return ""
        try:
            return date + terms.time(first(self.gathered.elements, STUDY_TIME))
        except ValueError:
            return date

    def to_json(self) -> bytes:
        """Return it as kept."""
        return orjson.dumps({**self.gathered.state(), "instances": self.instances, "modalities": self.modalities, "classes": self.classes})

    @classmethod
    def from_json(cls, text: bytes | str) -> "StudySummary":
        """Return what `to_json` kept."""
        state = orjson.loads(text)
        return cls(Gathered.restored(Level.STUDY, state), state["instances"], state["modalities"], state["classes"])


SUMMARISED = frozenset({MODALITIES, SOP_CLASSES, SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES})
"""Tags of the attributes that are computed from all instances of a study or series."""


def gathered_of(attributes: Attributes) -> Attributes:
    """Return those `attributes` of a study or series that were gathered, not computed."""
    return {tag: element for tag, element in attributes.items() if tag not in SUMMARISED}


def computed_terms(attributes: Attributes) -> list[Term]:
    """Return the index terms of the computed attributes."""
    return [Term(tag, terms.cut(str(value))) for tag in sorted(SUMMARISED) for value in attributes.get(tag, {}).get("Value", ())]


def level_terms(attributes: Attributes) -> list[Term]:
    """Return the index terms of a study or series, from its `attributes`."""
    return terms.derive(attributes, UID_COLUMNS).terms + computed_terms(attributes)


def start_of(workitem: Attributes) -> str:
    """Return the sort value of Scheduled Procedure Step Start DateTime; "" if there is none."""
    try:
        return terms.date_time(first(workitem, START_DATE_TIME))
    except ValueError:
        return ""


def workitem_terms(document: WorkitemDocument, dataset: Attributes) -> list[Term]:
    """Return the index terms of a workitem, including its UID; none for a deleted one."""
    if document.deleted:
        return []
    return [Term(SOP_UID, document.workitem_uid), *terms.derive(dataset, frozenset({SOP_UID}), with_texts=True).terms]
