"""Collections: studies and non-patient resources."""

import pytest

from gantry_standard.dicom.collections import (
    COLLECTION_OF_SOP_CLASS,
    NON_PATIENT_COLLECTIONS,
    NON_PATIENT_RESOURCES,
    instance_path,
    is_study,
)
from gantry_standard.dicom.uids import is_valid_uid


def test_the_resources_are_those_of_the_standard() -> None:
    names = {"color-palettes", "defined-procedure-protocols", "hanging-protocols", "implant-templates", "inventories"}
    assert names == NON_PATIENT_COLLECTIONS


@pytest.mark.parametrize(
    ("sop_class_uid", "name"),
    [
        ("1.2.840.10008.5.1.4.38.1", "hanging-protocols"),
        ("1.2.840.10008.5.1.4.39.1", "color-palettes"),
        ("1.2.840.10008.5.1.4.43.1", "implant-templates"),
        ("1.2.840.10008.5.1.4.44.1", "implant-templates"),
        ("1.2.840.10008.5.1.4.45.1", "implant-templates"),
        ("1.2.840.10008.5.1.4.1.1.200.1", "defined-procedure-protocols"),
        ("1.2.840.10008.5.1.4.1.1.200.7", "defined-procedure-protocols"),
        ("1.2.840.10008.5.1.4.1.1.201.1", "inventories"),
    ],
)
def test_each_sop_class_has_its_resource(sop_class_uid: str, name: str) -> None:
    assert COLLECTION_OF_SOP_CLASS[sop_class_uid] == name


def test_no_sop_class_is_in_two_resources() -> None:
    uids = [uid for resource in NON_PATIENT_RESOURCES for uid in resource.sop_class_uids]
    assert len(uids) == len(set(uids)) == len(COLLECTION_OF_SOP_CLASS)


def test_a_key_is_a_study_or_a_resource_never_both() -> None:
    assert all(is_study(uid) for uid in ("1.2.3", "2.25.7", "0"))
    assert not any(is_study(name) or is_valid_uid(name) for name in NON_PATIENT_COLLECTIONS)


def test_instances_have_the_path_of_their_collection() -> None:
    assert instance_path("1.2", "1.2.3", "1.2.3.4") == "/studies/1.2/series/1.2.3/instances/1.2.3.4"
    assert instance_path("hanging-protocols", "", "1.2.3.4") == "/hanging-protocols/1.2.3.4"
