"""The checks before an instance is accepted, one row per check. The first check that fails is the reason of the failure.

The scan has already checked that the data set can be read to its end, that the required UIDs are present and valid, and that the length of
Pixel Data fits its attributes. This module has the checks that depend on the request and on settings.

Source: PS3.18 §10.5.1.1, §10.5.3 and Annex I.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gantry_runtime.callers import ANONYMOUS, Caller
from gantry_standard import reasons
from gantry_standard.dicom.collections import COLLECTION_OF_SOP_CLASS
from gantry_standard.dicom.limits import ScanFailure
from gantry_standard.dicom.scanned import ScannedInstance
from gantry_standard.dicom.sop_classes import is_storage_sop_class


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """What a request and the settings allow.

    Attributes:
        collection: key of the collection that every instance must belong to; "" for any study.
        accept_private_sop_classes: accept private SOP classes, and SOP classes that are not in our edition of PS3.6.
        caller: who made the request.
    """

    collection: str = ""
    accept_private_sop_classes: bool = True
    caller: Caller = ANONYMOUS


@dataclass(frozen=True, slots=True)
class Check:
    """One condition. `message` may name UIDs, never other attributes."""

    reason: int
    holds: Callable[[ScannedInstance, AdmissionPolicy], bool]
    message: Callable[[ScannedInstance, AdmissionPolicy], str]


def _is_taken(scanned: ScannedInstance, accept_private: bool) -> bool:
    """Return whether the collection accepts instances of the SOP class (PS3.18 §12.1.1)."""
    if scanned.resource:
        return COLLECTION_OF_SOP_CLASS.get(scanned.sop_class_uid) == scanned.resource
    return is_storage_sop_class(scanned.sop_class_uid, accept_private)


CHECKS = (
    # The first check, so that the response does not reveal whether a study exists that the caller may not see.
    Check(
        reasons.NOT_AUTHORIZED,
        lambda scanned, policy: policy.caller.may_see(scanned.study_instance_uid),
        lambda scanned, _: f"the caller may not store into study {scanned.study_instance_uid}",
    ),
    Check(
        reasons.DATA_SET_DOES_NOT_MATCH,
        lambda scanned, policy: policy.collection in ("", scanned.study_instance_uid, scanned.resource),
        lambda scanned, policy: f"Study Instance UID is {scanned.study_instance_uid}, expected {policy.collection}",
    ),
    Check(
        reasons.SOP_CLASS_NOT_SUPPORTED,
        lambda scanned, policy: _is_taken(scanned, policy.accept_private_sop_classes),
        lambda scanned, _: f"SOP class {scanned.sop_class_uid} is not stored here",
    ),
)


def admit(scanned: ScannedInstance, policy: AdmissionPolicy) -> None:
    """Check whether a scanned instance may be stored.

    Raises:
        ScanFailure: it may not, for the reason of the first check that fails.
    """
    for check in CHECKS:
        if not check.holds(scanned, policy):
            raise ScanFailure(
                check.message(scanned, policy),
                check.reason,
                study_instance_uid=scanned.study_instance_uid,
                series_instance_uid=scanned.series_instance_uid,
                sop_class_uid=scanned.sop_class_uid,
                sop_instance_uid=scanned.sop_instance_uid,
            )
