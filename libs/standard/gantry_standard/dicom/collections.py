"""Collections: what instances are kept in, a study or a resource of the Non-Patient Instance service.

A collection key is a text: of a study its Study Instance UID, of a non-patient resource its name in URLs, such as `hanging-protocols`.
The two cannot be confused: a UID begins with a digit, and no name does. Keys choose the partition of the stream, and never change.

To add a resource or a SOP class, add a row to NON_PATIENT_RESOURCES.

Source: PS3.18 §12.1.1; PS3.4 Annexes U (hanging protocols), X (color palettes), BB (implant templates), HH (defined procedure
protocols) and JJ (inventories).
"""

from typing import NamedTuple


class Resource(NamedTuple):
    """A non-patient resource: its name in URLs, and the SOP classes that it takes."""

    name: str
    sop_class_uids: tuple[str, ...]


NON_PATIENT_RESOURCES = (
    Resource("color-palettes", ("1.2.840.10008.5.1.4.39.1",)),
    Resource(
        "defined-procedure-protocols",
        (
            "1.2.840.10008.5.1.4.1.1.200.1",  # CT
            "1.2.840.10008.5.1.4.1.1.200.7",  # XA
        ),
    ),
    Resource("hanging-protocols", ("1.2.840.10008.5.1.4.38.1",)),
    Resource(
        "implant-templates",
        (
            "1.2.840.10008.5.1.4.43.1",  # Generic Implant Template
            "1.2.840.10008.5.1.4.44.1",  # Implant Assembly Template
            "1.2.840.10008.5.1.4.45.1",  # Implant Template Group
        ),
    ),
    Resource("inventories", ("1.2.840.10008.5.1.4.1.1.201.1",)),
)

COLLECTION_OF_SOP_CLASS = {uid: resource.name for resource in NON_PATIENT_RESOURCES for uid in resource.sop_class_uids}
"""SOP Class UID to the collection key of its resource. A SOP class that is not here is kept in studies."""

NON_PATIENT_COLLECTIONS = frozenset(resource.name for resource in NON_PATIENT_RESOURCES)


def is_study(collection: str) -> bool:
    """Say whether a collection key is a Study Instance UID."""
    return "0" <= collection[:1] <= "9"


def instance_path(collection: str, series_instance_uid: str, sop_instance_uid: str) -> str:
    """Return the path of an instance below the base URL; `series_instance_uid` counts in a study only."""
    if is_study(collection):
        return f"/studies/{collection}/series/{series_instance_uid}/instances/{sop_instance_uid}"
    return f"/{collection}/{sop_instance_uid}"
