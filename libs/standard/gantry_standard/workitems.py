"""What the standard tabulates about the attributes of a workitem (Unified Procedure Step).

One row per attribute of PS3.4 Table CC.2.5-3; `>` stands for one level of nesting, as there. To change a rule, change its cell.
The columns of create and set hold the type for the requester / for the server:

    1   must be there with a value            NA   must not be there
    2   must be there, may be empty           -    set by the server: a value in the request is ignored
    3   may be there                          C    conditional, not checked

`final` is the requirement of a final state: R a value for both, P a value for COMPLETED, p present for COMPLETED (may be empty),
X a value for CANCELED (filled in by the server), RC conditional, O nothing.
`match`: U unique key, R required, O optional, - none. `returned`: type of the return key of a search.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gantry_standard.dicom.pydicom_tables import attribute, tag_of

SOP_CLASS_UID = "1.2.840.10008.5.1.4.34.6.1"
"""UPS Push SOP Class: SOP Class UID of every workitem, whichever service touches it (PS3.4 CC.3.1.1)."""
GLOBAL_SUBSCRIPTION = "1.2.840.10008.5.1.4.34.5"
FILTERED_SUBSCRIPTION = "1.2.840.10008.5.1.4.34.5.1"

SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"

ENUMERATIONS = {
    "ScheduledProcedureStepPriority": ("HIGH", "MEDIUM", "LOW"),
    "InputReadinessState": ("INCOMPLETE", "UNAVAILABLE", "READY"),
    "ProcedureStepState": (SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED),
}
"""Enumerated values (PS3.3 C.30.1, C.30.2)."""

_TABLE = """
# keyword                                            create  set    final  get   match  returned
TransactionUID                                       2/2     lock   O      NA    -      -
SpecificCharacterSet                                 1C/1C   1C/1C  RC     3/1   -      1C
SOPClassUID                                          -/1     NA     R      NA    O      1
SOPInstanceUID                                       -/1     NA     R      NA    U      1
ScheduledProcedureStepPriority                       1/1     3/1    R      3/1   R      1
ScheduledProcedureStepModificationDateTime           -/1     -/1    R      3/1   O      3
ProcedureStepLabel                                   1/1     3/1    O      3/1   R      1
WorklistLabel                                        2/1     3/1    O      3/1   R      1
ScheduledProcessingParametersSequence                2/2     3/2    O      3/2   -      2
ScheduledStationNameCodeSequence                     2/2     3/2    O      3/2   R      2
ScheduledStationClassCodeSequence                    2/2     3/2    O      3/2   R      2
ScheduledStationGeographicLocationCodeSequence       2/2     3/2    O      3/2   R      2
ScheduledHumanPerformersSequence                     2C/2C   3/2    O      3/2   R      2
>HumanPerformerCodeSequence                          1/1     1/1    O      -/1   R      1
>HumanPerformerName                                  1/1     1/1    O      -/1   O      3
>HumanPerformerOrganization                          1/1     1/1    O      -/1   O      3
ScheduledProcedureStepStartDateTime                  1/1     3/1    R      3/1   R      1
ExpectedCompletionDateTime                           3/1     3/1    O      3/1   R      3
ScheduledProcedureStepExpirationDateTime             3/3     3/3    O      3/3   O      3
ScheduledWorkitemCodeSequence                        2/2     3/1    O      3/1   R      2
CommentsOnTheScheduledProcedureStep                  2/2     3/1    O      3/1   O      3
InputReadinessState                                  1/1     3/1    R      3/1   R      1
InputInformationSequence                             2/2     3/2    O      3/2   O      2
StudyInstanceUID                                     1C/2    3/2    O      3/2   O      2
OutputDestinationSequence                            3/3     3/3    O      3/3   O      3
PatientName                                          2/2     NA     O      3/2   R      2
PatientID                                            1C/2    NA     O      3/2   R      2
IssuerOfPatientID                                    2/2     NA     O      3/2   R      2
IssuerOfPatientIDQualifiersSequence                  2/2     NA     O      3/2   O      2
OtherPatientIDsSequence                              2/2     3/3    O      3/2   O      2
>PatientID                                           1/1     1/1    O      3/1   O      1
PatientBirthDate                                     2/2     NA     O      3/2   R      2
PatientSex                                           2/2     NA     O      3/2   R      2
ReferencedPatientPhotoSequence                       3/3     3/3    O      3/3   -      3
AdmissionID                                          2/2     NA     O      3/2   R      2
IssuerOfAdmissionIDSequence                          2/2     NA     O      3/2   R      2
AdmittingDiagnosesDescription                        2/2     NA     O      3/2   O      2
AdmittingDiagnosesCodeSequence                       2/2     NA     O      3/2   O      2
ReferencedRequestSequence                            2/2     NA     O      3/2   R      2
>StudyInstanceUID                                    1/1     NA     O      -/1   O      1
>AccessionNumber                                     2/2     NA     O      -/2   R      2
>IssuerOfAccessionNumberSequence                     2/2     NA     O      -/2   R      2
>PlacerOrderNumberImagingServiceRequest              3/1     NA     O      -/1   O      1C
>FillerOrderNumberImagingServiceRequest              3/1     NA     O      -/1   O      1C
>OrderPlacerIdentifierSequence                       2/2     NA     O      -/2   O      2
>OrderFillerIdentifierSequence                       2/2     NA     O      -/2   O      2
>RequestedProcedureID                                2/2     NA     O      -/2   R      2
>RequestedProcedureDescription                       2/2     NA     O      -/2   O      2
>RequestedProcedureCodeSequence                      2/2     NA     O      -/2   O      2
>ReasonForTheRequestedProcedure                      3/3     3/3    O      -/3   O      3
>ReasonForRequestedProcedureCodeSequence             3/3     3/3    O      -/3   O      3
>RequestedProcedureComments                          3/3     3/3    O      -/3   O      1C
>RequestingService                                   3/1     3/1    O      -/3   R      3
ReplacedProcedureStepSequence                        1C/1C   NA     O      3/2   R      3
MedicalAlerts                                        3/2     3/2    O      3/2   O      2C
PregnancyStatus                                      3/2     3/2    O      3/2   O      2C
SpecialNeeds                                         3/2     3/2    O      3/2   O      2C
ProcedureStepState                                   1/1     NA     R      3/1   R      1
ProcedureStepProgressInformationSequence             2/2     3/2    X      3/2   -      2
>ProcedureStepProgress                               NA      3/1    O      -/1   -      -
>ProcedureStepProgressDescription                    NA      3/1    O      -/1   -      -
>ProcedureStepProgressParametersSequence             NA      3/3    O      -/3   -      -
>ProcedureStepCommunicationsURISequence              NA      3/1    O      -/1   -      -
>>ContactURI                                         NA      1/1    O      -/1   -      -
>>ContactDisplayName                                 NA      3/1    O      -/1   -      -
>ProcedureStepCancellationDateTime                   NA      3/1    X      -/1   -      -
>ReasonForCancellation                               NA      3/1    O      -/1   -      -
>ProcedureStepDiscontinuationReasonCodeSequence      NA      3/1    X      -/1   -      -
UnifiedProcedureStepPerformedProcedureSequence       2/2     3/2    P      3/2   -      2
>ActualHumanPerformersSequence                       NA      3/1    RC     -/1   O      1C
>>HumanPerformerCodeSequence                         NA      3/1    RC     -/1   O      1C
>>HumanPerformerName                                 NA      3/1    RC     -/1   O      1C
>>HumanPerformerOrganization                         NA      3/1    O      -/1   O      1C
>PerformedStationNameCodeSequence                    NA      3/2    P      -/2   O      3
>PerformedStationClassCodeSequence                   NA      3/2    O      -/2   -      -
>PerformedStationGeographicLocationCodeSequence      NA      3/2    O      -/2   -      -
>PerformedProcedureStepStartDateTime                 NA      3/1    P      -/1   -      -
>PerformedProcedureStepDescription                   NA      3/1    O      -/1   -      -
>CommentsOnThePerformedProcedureStep                 NA      3/1    O      -/1   -      -
>PerformedProcessingParametersSequence               NA      3/1    O      -/1   -      -
>PerformedWorkitemCodeSequence                       NA      3/1    P      -/1   -      -
>PerformedProcedureStepEndDateTime                   NA      3/1    P      -/1   O      1C
>OutputInformationSequence                           NA      2/2    p      -/2   -      -
"""
# Source: PS3.4 Table CC.2.5-3.


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row of the table.

    Attributes:
        path: tags from the root, 8 upper-case hex digits each.
        create, set: types of N-CREATE and N-SET, requester/server.
    """

    keyword: str
    path: tuple[str, ...]
    create: str
    set: str
    final: str
    get: str
    match: str
    returned: str

    @property
    def tag(self) -> str:
        """The last tag of the path."""
        return self.path[-1]


def _read(table: str) -> tuple[Attribute, ...]:
    rows: list[Attribute] = []
    path: list[str] = []
    for line in table.strip().splitlines()[1:]:
        name, create, change, *others = line.split()
        keyword = name.lstrip(">")
        del path[len(name) - len(keyword) :]
        path.append(tag_of(keyword))
        rows.append(Attribute(keyword, tuple(path), create, change, *others))
    return tuple(rows)


ATTRIBUTES = _read(_TABLE)


BY_PATH: dict[tuple[str, ...], Attribute] = {row.path: row for row in ATTRIBUTES}


def is_matched(path: tuple[str, ...]) -> bool:
    """Return whether a search matches an attribute: by its own row or the nearest row above it; True if there is no such row.

    Args:
        path: tags from the root.
    """
    for length in range(len(path), 0, -1):
        if row := BY_PATH.get(path[:length]):
            return row.match != "-"
    return True


UNMATCHED = {row.tag for row in ATTRIBUTES if len(row.path) == 1} - {row.path[0] for row in ATTRIBUTES if row.match != "-"}
"""Root tags that searches ignore, with everything inside them."""

BULK_GROUPS = ("50", "54", "60", "7FE0")
"""First digits of the groups of curves, waveforms, overlays and pixel data: none is an attribute of a workitem."""


def is_supported(tag: str, element: Mapping[str, object]) -> bool:
    """Return whether a workitem can have an attribute: it is not bulkdata, and its value is inline."""
    is_bulk = tag.startswith(BULK_GROUPS) and tag[3] not in "13579BDF"
    return not is_bulk and "BulkDataURI" not in element


def is_valid_ae_title(text: str) -> bool:
    """Return whether a text is a valid AE title: 1 to 16 printable ASCII characters, no backslash, not only blanks (PS3.5 §6.2)."""
    return 0 < len(text) <= 16 and bool(text.strip()) and all(" " <= c <= "~" and c != "\\" for c in text)


def below(parent: tuple[str, ...]) -> tuple[Attribute, ...]:
    """Return the rows directly under a sequence; () for the root."""
    return _BELOW.get(parent, ())


_BELOW: dict[tuple[str, ...], tuple[Attribute, ...]] = {}
for _row in ATTRIBUTES:
    _BELOW[_row.path[:-1]] = (*_BELOW.get(_row.path[:-1], ()), _row)


@lru_cache(8192)
def vr_of(tag: str) -> str:
    """Return the VR that the data dictionary has for a tag of 8 hex digits; "" for private and unknown ones.

    Where it allows several ("US or SS") it is "".
    """
    row = attribute(int(tag, 16))
    return row.vr if row is not None and len(row.vr) == 2 else ""


def name_of(tag: str) -> str:
    """Return an attribute's name for messages: Procedure Step State (0074,1000)."""
    row = attribute(int(tag, 16))
    name = "" if row is None else f"{row.name} "
    return f"{name}({tag[:4]},{tag[4:]})"


@lru_cache(8192)
def is_code_sequence(tag: str) -> bool:
    """Say whether the items of a sequence are codes (PS3.3 Table 8.8-1)."""
    row = attribute(int(tag, 16))
    return row is not None and row.vr == "SQ" and row.name.endswith("Code Sequence")


STUDY_INSTANCE_UID = tag_of("StudyInstanceUID")


def studies_of(dataset: Mapping[str, Any]) -> frozenset[str]:
    """Return the Study Instance UIDs that a workitem names anywhere: its own, those of its input and output, those of its requests.

    Args:
        dataset: DICOM JSON object.
    """
    return frozenset(_studies_in(dataset))


def _studies_in(dataset: Mapping[str, Any]) -> Iterator[str]:
    for tag, element in dataset.items():
        values = element.get("Value", ()) if isinstance(element, Mapping) else ()
        if tag == STUDY_INSTANCE_UID:
            yield from (str(value) for value in values if value)
        elif element.get("vr") == "SQ":
            for item in values:
                if isinstance(item, Mapping):
                    yield from _studies_in(item)
