"""SOP classes that Store accepts.

Source: PS3.6 Table A-1 from pydicom; PS3.4 Annex B.5 and GG.3.
"""

from functools import lru_cache

from gantry_standard.dicom.pydicom_tables import UIDS
from gantry_standard.dicom.uids import is_valid_uid

# These have "Storage" in their names but are not stored by Store.
_NOT_STORED = frozenset(
    (
        "1.2.840.10008.1.3.10",  # Media Storage Directory
        "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
        "1.2.840.10008.1.20.2",  # Storage Commitment Pull Model
    )
)
_DICOM_ROOT = "1.2.840.10008."
# The root of new storage SOP classes in PS3.6; one that is newer than the dictionary is unknown, not invalid.
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."


@lru_cache(maxsize=1024)
def is_storage_sop_class(uid: str, accept_private: bool) -> bool:
    """Return whether instances of a SOP class may be stored.

    Args:
        accept_private: also accept private SOP classes and those that are newer than the dictionary. Well-known classes that are
            not for storage (Verification, MPPS, UPS, queries, the media storage directory …) are never accepted.
    """
    if not is_valid_uid(uid) or uid in _NOT_STORED:
        return False
    row = UIDS.get(uid)
    if row is not None and row[0]:
        return row[1] == "SOP Class" and "Storage" in row[0]
    return accept_private and (not uid.startswith(_DICOM_ROOT) or uid.startswith(_STORAGE_ROOT))


def storage_sop_classes() -> dict[str, str]:
    """Return the well-known storage SOP classes: UID to name, in the order of PS3.6."""
    return {uid: row[0] for uid, row in UIDS.items() if is_storage_sop_class(uid, accept_private=False)}


def sop_class_name(uid: str) -> str:
    """Return the name of a SOP class, or its UID if PS3.6 has none."""
    row = UIDS.get(uid)
    return row[0] if row is not None and row[0] else uid
