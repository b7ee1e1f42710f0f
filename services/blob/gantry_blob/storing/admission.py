"""What is looked at before an instance is accepted: one row per check, the first that fails is the reason.

The scan itself has looked already that the data set can be read to its end, that the UIDs that it needs are there and are UIDs, and whether
pixel data is as long as its attributes say. Here is what depends on the request and on the settings.

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
class Terms:
    """What a request and the settings allow.

    Attributes:
        collection: key of the collection that every instance must belong to; "" for any study.
        accept_private_sop_classes: take private SOP classes and ones that PS3.6 did not know yet.
        caller: who stores.
    """

    collection: str = ""
    accept_private_sop_classes: bool = True
    caller: Caller = ANONYMOUS


@dataclass(frozen=True, slots=True)
class Check:
    """One condition. `message` may name UIDs, never other attributes."""

    reason: int
    holds: Callable[[ScannedInstance, Terms], bool]
    message: Callable[[ScannedInstance, Terms], str]


def _is_taken(scanned: ScannedInstance, accept_private: bool) -> bool:
    """Say whether instances of the SOP class are kept where this one is to go (PS3.18 §12.1.1)."""
    if scanned.resource:
        return COLLECTION_OF_SOP_CLASS.get(scanned.sop_class_uid) == scanned.resource
    return is_storage_sop_class(scanned.sop_class_uid, accept_private)


CHECKS = (
    # Of a study that the caller may not see it must not show whether it is there.
    Check(
        reasons.NOT_AUTHORIZED,
        lambda scanned, terms: terms.caller.may_see(scanned.study_instance_uid),
        lambda scanned, _: f"study {scanned.study_instance_uid} is none that the caller may store into",
    ),
    Check(
        reasons.DATA_SET_DOES_NOT_MATCH,
        lambda scanned, terms: terms.collection in ("", scanned.study_instance_uid, scanned.resource),
        lambda scanned, terms: f"Study Instance UID is {scanned.study_instance_uid}, expected {terms.collection}",
    ),
    Check(
        reasons.SOP_CLASS_NOT_SUPPORTED,
        lambda scanned, terms: _is_taken(scanned, terms.accept_private_sop_classes),
        lambda scanned, _: f"SOP class {scanned.sop_class_uid} is not stored here",
    ),
)


def admit(scanned: ScannedInstance, terms: Terms) -> None:
    """Look whether a scanned instance may be stored.

    Raises:
        ScanFailure: with the reason of the first check that fails.
    """
    for check in CHECKS:
        if not check.holds(scanned, terms):
            raise ScanFailure(
                check.message(scanned, terms),
                check.reason,
                study_instance_uid=scanned.study_instance_uid,
                series_instance_uid=scanned.series_instance_uid,
                sop_class_uid=scanned.sop_class_uid,
                sop_instance_uid=scanned.sop_instance_uid,
            )
