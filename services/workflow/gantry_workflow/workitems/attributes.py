"""Checks data sets against the table of workitem attributes (`gantry_standard/workitems.py`).

Source: PS3.4 Table CC.2.5-3.
"""

from gantry_standard import errors, workitems
from gantry_standard.dicom.pydicom_tables import tag_of
from gantry_standard.workitems import COMPLETED, ENUMERATIONS, Attribute, below, name_of
from gantry_workflow.workitems.dataset import Dataset, has_value, values

TRANSACTION_UID = tag_of("TransactionUID")
SPECIFIC_CHARACTER_SET = tag_of("SpecificCharacterSet")
SOP_CLASS_UID = tag_of("SOPClassUID")
SOP_INSTANCE_UID = tag_of("SOPInstanceUID")
STATE = tag_of("ProcedureStepState")
INPUT_READINESS = tag_of("InputReadinessState")
MODIFIED = tag_of("ScheduledProcedureStepModificationDateTime")
WORKLIST_LABEL = tag_of("WorklistLabel")
PROGRESS = tag_of("ProcedureStepProgressInformationSequence")
PERFORMED = tag_of("UnifiedProcedureStepPerformedProcedureSequence")
STATION_NAME = tag_of("ScheduledStationNameCodeSequence")
HUMAN_PERFORMERS = tag_of("ScheduledHumanPerformersSequence")
HUMAN_PERFORMER_CODE = tag_of("HumanPerformerCodeSequence")
HUMAN_PERFORMER_ORGANIZATION = tag_of("HumanPerformerOrganization")
CANCELLATION_DATETIME = tag_of("ProcedureStepCancellationDateTime")
CANCELLATION_REASON = tag_of("ReasonForCancellation")
DISCONTINUATION_REASON = tag_of("ProcedureStepDiscontinuationReasonCodeSequence")
CONTACT_URI = tag_of("ContactURI")
CONTACT_NAME = tag_of("ContactDisplayName")
REQUESTING_AE = tag_of("RequestingAE")

_ENUMERATED = {tag_of(keyword): allowed for keyword, allowed in ENUMERATIONS.items()}
_EMPTY_AT_CREATION = (TRANSACTION_UID, PROGRESS, PERFORMED)


def check_enumerations(dataset: Dataset) -> None:
    """Check the enumerated values of the attributes at the root of a data set.

    Raises:
        errors.BadRequest: a value is not one of the enumerated values.
    """
    for tag, allowed in _ENUMERATED.items():
        present = values(dataset, tag)
        if present and (len(present) > 1 or present[0] not in allowed):
            raise errors.BadRequest(f"{name_of(tag)} is {str(present[0])[:16]!r}, expected one of {', '.join(allowed)}")


def check_creation(dataset: Dataset, strict: bool) -> bool:
    """Check the data set of a new workitem, and add missing attributes in place.

    Args:
        strict: refuse a missing attribute of type 2 instead of adding it empty.

    Returns:
        Whether attributes were added.

    Raises:
        errors.BadRequest: an attribute is missing, empty or not allowed; the message names it.
    """
    check_enumerations(dataset)
    for tag in _EMPTY_AT_CREATION:
        if has_value(dataset, tag):
            raise errors.BadRequest(f"{name_of(tag)} must be empty when a workitem is created")
    return _complete(dataset, (), strict)


def _complete(dataset: Dataset, path: tuple[str, ...], strict: bool) -> bool:
    added = False
    for row in below(path):
        kind = row.create.partition("/")[0]
        if kind == "1" and not has_value(dataset, row.tag):
            raise errors.BadRequest(f"{_where(row)} must have a value when a workitem is created")
        if kind == "NA" and row.tag in dataset:
            raise errors.BadRequest(f"{_where(row)} is not allowed when a workitem is created")
        if kind == "2" and row.tag not in dataset:
            if strict:
                raise errors.BadRequest(f"{_where(row)} must be present when a workitem is created; it may be empty")
            dataset[row.tag] = {"vr": workitems.vr_of(row.tag)}
            added = True
        if below(row.path):
            for item in values(dataset, row.tag):
                added |= _complete(item, row.path, strict)
    return added


def leave_out_unsupported(dataset: Dataset) -> bool:
    """Remove unsupported attributes in place, at every depth; return whether there were any."""
    unsupported = [tag for tag, element in dataset.items() if not workitems.is_supported(tag, element)]
    for tag in unsupported:
        del dataset[tag]
    nested = [leave_out_unsupported(item) for element in dataset.values() if element["vr"] == "SQ" for item in element.get("Value", [])]
    return bool(unsupported) or any(nested)


def check_update(dataset: Dataset) -> None:
    """Check the attributes of an update.

    Raises:
        errors.BadRequest: an attribute is not allowed, missing, or empty although it must have a value; the message names it.
    """
    check_enumerations(dataset)
    _check_update(dataset, ())


def _check_update(dataset: Dataset, path: tuple[str, ...]) -> None:
    for row in below(path):
        kind, _, server = row.set.partition("/")
        present = row.tag in dataset
        if kind == "NA" and present:
            raise errors.BadRequest(f"{_where(row)} cannot be changed by an update")
        if kind == "1" and not has_value(dataset, row.tag):
            raise errors.BadRequest(f"{_where(row)} must have a value in an update")
        if kind == "2" and not present:
            raise errors.BadRequest(f"{_where(row)} must be present in an update; it may be empty")
        if kind == "3" and server == "1" and present and not has_value(dataset, row.tag):
            raise errors.BadRequest(f"{_where(row)} cannot be made empty")
        for item in values(dataset, row.tag) if below(row.path) and present else ():
            _check_update(item, row.path)


def missing_for(state: str, dataset: Dataset) -> list[str]:
    """Return a message for each attribute that a final state requires and the workitem lacks.

    For CANCELED only the attributes that both final states require are checked: the server adds the others.
    """
    return _missing(dataset, (), ("R", "P", "p") if state == COMPLETED else ("R",))


def _missing(dataset: Dataset, path: tuple[str, ...], needed: tuple[str, ...]) -> list[str]:
    missing: list[str] = []
    for row in below(path):
        if row.final in needed and row.final == "p" and row.tag not in dataset:
            missing.append(f"{_where(row)} is missing")
        elif row.final in needed and row.final != "p" and not has_value(dataset, row.tag):
            missing.append(f"{_where(row)} has no value")
        if below(row.path):
            for item in values(dataset, row.tag):
                missing += _missing(item, row.path, needed)
    return missing


def _where(row: Attribute) -> str:
    return " of an item of ".join(name_of(tag) for tag in reversed(row.path))
