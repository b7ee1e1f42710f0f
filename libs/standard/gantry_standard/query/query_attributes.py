"""The attributes that are searched and returned at each level.

To make an attribute searchable at study or series level, or to return it, add a row. VR and VM come from pydicom's dictionary.
An attribute that has no row is an attribute of the instance.

Source: PS3.18 §10.6 (Tables 10.6.1-5, 10.6.3-3 to 10.6.3-5); PS3.4 §C.6.1.1; for workitems PS3.4 Table CC.2.5-3.
"""

import re
from dataclasses import dataclass
from enum import Enum

from gantry_standard.dicom.pydicom_tables import KEYWORDS, attribute, tag_of
from gantry_standard.query.levels import Level


class Entity(Enum):
    """Information entities; patient attributes are stored with the study."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    INSTANCE = 3

    @property
    def level(self) -> Level:
        """The level whose document holds attributes of this entity."""
        return Level(max(self.value, 1))


class Returned(Enum):
    """When an attribute is in a result."""

    REQUIRED = 1
    """Always; with only `vr` if it has no value."""
    KNOWN = 2
    """If it has a value."""
    OPTIONAL = 3
    """If it is a matching key, or in includefield."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row: an attribute of an entity and when it is returned."""

    keyword: str
    entity: Entity
    returned: Returned

    @property
    def tag(self) -> str:
        """8 upper-case hex digits."""
        return tag_of(self.keyword)


def _rows(entity: Entity, returned: Returned, keywords: str) -> tuple[Attribute, ...]:
    return tuple(Attribute(keyword, entity, returned) for keyword in keywords.split())


ATTRIBUTES: tuple[Attribute, ...] = (
    # PS3.4 §C.6.1.1.2, C.6.1.1.3; PS3.18 Table 10.6.3-3.
    *_rows(Entity.PATIENT, Returned.REQUIRED, "PatientName PatientID PatientBirthDate PatientSex"),
    *_rows(
        Entity.PATIENT,
        Returned.OPTIONAL,
        """IssuerOfPatientID IssuerOfPatientIDQualifiersSequence OtherPatientIDs OtherPatientIDsSequence OtherPatientNames
        PatientBirthTime EthnicGroup PatientComments PatientSpeciesDescription PatientBreedDescription ResponsiblePerson
        ResponsibleOrganization ReferencedPatientSequence PatientIdentityRemoved QualityControlSubject""",
    ),
    *_rows(
        Entity.STUDY,
        Returned.REQUIRED,
        """StudyDate StudyTime AccessionNumber ModalitiesInStudy ReferringPhysicianName StudyInstanceUID StudyID
        NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances""",
    ),
    *_rows(Entity.STUDY, Returned.KNOWN, "InstanceAvailability TimezoneOffsetFromUTC RetrieveURL"),
    *_rows(
        Entity.STUDY,
        Returned.OPTIONAL,
        """StudyDescription ProcedureCodeSequence NameOfPhysiciansReadingStudy PhysiciansOfRecord SOPClassesInStudy
        AnatomicRegionsInStudyCodeSequence AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientWeight
        Occupation AdditionalPatientHistory IssuerOfAccessionNumberSequence ReferencedStudySequence StudyUpdateDateTime
        ReasonForPerformedProcedureCodeSequence RequestingService AdmissionID MedicalAlerts Allergies PregnancyStatus SmokingStatus
        LastMenstrualDate PatientState""",
    ),
    # PS3.4 §C.6.1.1.4; PS3.18 Table 10.6.3-4.
    *_rows(Entity.SERIES, Returned.REQUIRED, "Modality SeriesInstanceUID SeriesNumber NumberOfSeriesRelatedInstances"),
    *_rows(
        Entity.SERIES,
        Returned.KNOWN,
        """TimezoneOffsetFromUTC SeriesDescription RetrieveURL PerformedProcedureStepStartDate PerformedProcedureStepStartTime
        RequestAttributesSequence""",
    ),
    *_rows(
        Entity.SERIES,
        Returned.OPTIONAL,
        """SeriesDate SeriesTime SeriesDescriptionCodeSequence BodyPartExamined Laterality PatientPosition ProtocolName
        PerformingPhysicianName OperatorsName InstitutionName InstitutionalDepartmentName InstitutionAddress StationName Manufacturer
        ManufacturerModelName DeviceSerialNumber SoftwareVersions FrameOfReferenceUID PerformedProcedureStepID
        PerformedProcedureStepDescription PerformedProcedureStepEndDate PerformedProcedureStepEndTime PerformedProtocolCodeSequence
        PerformedStationAETitle ReferencedPerformedProcedureStepSequence SynchronizationFrameOfReferenceUID PresentationIntentType""",
    ),
    # PS3.4 §C.6.1.1.5; PS3.18 Table 10.6.3-5.
    *_rows(Entity.INSTANCE, Returned.REQUIRED, "SOPClassUID SOPInstanceUID InstanceNumber"),
    *_rows(
        Entity.INSTANCE,
        Returned.KNOWN,
        "InstanceAvailability TimezoneOffsetFromUTC RetrieveURL Rows Columns BitsAllocated NumberOfFrames",
    ),
    *_rows(
        Entity.INSTANCE,
        Returned.OPTIONAL,
        """AvailableTransferSyntaxUID RelatedGeneralSOPClassUID ConceptNameCodeSequence ContentTemplateSequence ContainerIdentifier
        SpecimenDescriptionSequence ContentDate ContentTime AcquisitionDate AcquisitionTime AcquisitionDateTime AcquisitionNumber ImageType
        ContentLabel ContentDescription ContentCreatorName DocumentTitle CompletionFlag VerificationFlag PhotometricInterpretation
        SamplesPerPixel BitsStored ImageComments LossyImageCompression""",
    ),
)

RETURNED: dict[Level, dict[str, Attribute]] = {
    level: {row.tag: row for row in sorted(ATTRIBUTES, key=lambda row: row.tag) if row.entity.level is level} for level in Level
}
"""Per level and tag, the row."""

ENTITY: dict[str, Entity] = {row.tag: row.entity for row in sorted(ATTRIBUTES, key=lambda row: -row.entity.value)}
"""The highest entity of each tabulated tag."""

COMPUTED = frozenset(
    row.tag
    for row in ATTRIBUTES
    if row.keyword.startswith("NumberOfStudyRelated")
    or row.keyword
    in (
        "ModalitiesInStudy",
        "SOPClassesInStudy",
        "NumberOfSeriesRelatedInstances",
        "InstanceAvailability",
        "RetrieveURL",
        "StudyUpdateDateTime",
        "AvailableTransferSyntaxUID",
    )
)
"""Tags whose values index computes; those in data sets are ignored."""

DATE_TIME_PAIRS: dict[str, str] = {
    tag_of(date): tag_of(time)
    for date, time in (
        ("StudyDate", "StudyTime"),
        ("SeriesDate", "SeriesTime"),
        ("AcquisitionDate", "AcquisitionTime"),
        ("ContentDate", "ContentTime"),
        ("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
        ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime"),
    )
}
"""Pairs of date and time that form one range (PS3.18 §8.3.4.1.1)."""


TAG = re.compile(r"[0-9A-Fa-f]{8}")


def resolve(name: str) -> str:
    """Return the tag of a tag or keyword, as 8 upper-case hex digits; "" if it is neither."""
    if TAG.fullmatch(name):
        return name.upper()
    return tag_of(name) if name in KEYWORDS else ""


def is_private(tag: str) -> bool:
    """Whether the group number is odd."""
    return int(tag[:4], 16) % 2 == 1


def is_private_creator(tag: str) -> bool:
    """Whether a tag is (gggg,0010-00FF) of an odd group (PS3.5 §7.8.1)."""
    return is_private(tag) and 0x10 <= int(tag[4:], 16) <= 0xFF


def vr_of(tag: str) -> str:
    """Return the first VR in the dictionary; "UN" for unknown tags."""
    if is_private_creator(tag):
        return "LO"
    row = attribute(int(tag, 16))
    return "UN" if row is None else row.vr[:2]


def is_multi_valued(tag: str) -> bool:
    """Whether the value multiplicity may be above 1."""
    row = attribute(int(tag, 16))
    return row is None or row.vm != "1"


def keyword_of(tag: str) -> str:
    """Return the keyword, or the tag if there is none."""
    row = attribute(int(tag, 16))
    return tag if row is None else row.keyword or tag
