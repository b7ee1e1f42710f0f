"""The Store Instances Response Module, and its HTTP status.

Source: PS3.18 §10.5.3, Annex I.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The result of one part of a store request.

    Attributes:
        study_instance_uid, series_instance_uid, sop_class_uid, sop_instance_uid: "" if the part does not contain it.
        failure_reason: (0008,1197); 0: stored.
        warning_reasons: (0008,1196) of a stored instance; the first is sent, because the attribute has one value.
        original_attributes: items of the Original Attributes Sequence (0400,0561) that the store added, as DICOM JSON objects.
    """

    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    failure_reason: int = 0
    warning_reasons: tuple[int, ...] = ()
    original_attributes: tuple[dict[str, Any], ...] = ()

    @property
    def is_stored(self) -> bool:
        """Return whether the instance can be retrieved."""
        return self.failure_reason == 0


def status(results: Sequence[StoreResult]) -> int:
    """Return 200 if all are stored without warning, 409 if none is stored, else 202.

    Source: PS3.18 Table 10.5.3-1.
    """
    if not any(result.is_stored for result in results):
        return 409
    return 202 if any(not result.is_stored or result.warning_reasons for result in results) else 200


def stored_studies(results: Sequence[StoreResult]) -> list[str]:
    """Return the Study Instance UIDs of the stored instances, each once, in order."""
    return list(dict.fromkeys(result.study_instance_uid for result in results if result.is_stored))


def module(
    results: Sequence[StoreResult], study_url: Callable[[str], str], instance_url: Callable[[StoreResult], str]
) -> dict[str, dict[str, Any]]:
    """Build the module as a DICOM JSON object.

    Args:
        results: in part order.
        study_url: Retrieve URL of a study by its UID; used if all stored instances belong to one study.
        instance_url: Retrieve URL of a stored instance.
    """
    studies = stored_studies(results)
    failed = [_failed(result) for result in results if not result.is_stored and _is_identified(result)]
    stored = [_stored(result, instance_url(result)) for result in results if result.is_stored]
    other = [_us("00081197", result.failure_reason) for result in results if not result.is_stored and not _is_identified(result)]
    built: dict[str, dict[str, Any]] = {"00081190": {"vr": "UR", "Value": [study_url(studies[0])]} if len(studies) == 1 else {"vr": "UR"}}
    for tag, items in (("00081198", failed), ("00081199", stored), ("0008119A", other)):
        if items:
            built[tag] = {"vr": "SQ", "Value": items}
    return built


def _is_identified(result: StoreResult) -> bool:
    """Return whether the Failed SOP Sequence can have an item: it requires both UIDs (type 1)."""
    return bool(result.sop_class_uid and result.sop_instance_uid)


def _failed(result: StoreResult) -> dict[str, Any]:
    return _reference(result) | _us("00081197", result.failure_reason)


def _stored(result: StoreResult, url: str) -> dict[str, Any]:
    item = _reference(result) | {"00081190": {"vr": "UR", "Value": [url]}}
    if result.warning_reasons:
        item |= _us("00081196", result.warning_reasons[0])
    if result.original_attributes:
        item |= {"04000561": {"vr": "SQ", "Value": list(result.original_attributes)}}
    return item


def _reference(result: StoreResult) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [result.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [result.sop_instance_uid]},
    }


def _us(tag: str, value: int) -> dict[str, Any]:
    return {tag: {"vr": "US", "Value": [value]}}
