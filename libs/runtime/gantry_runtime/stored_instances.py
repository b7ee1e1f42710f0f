"""Facts that blob and index derive from the message StoredInstance."""

from gantry.blob.v1.blob_pb2 import StoredInstance

INLINE_JSON_BYTES = 64 << 10
"""DICOM JSON up to this size is kept in the trailer of the pack and in index; larger DICOM JSON only in the pack, at its location."""

COPY_SUFFIX = ".copy.pack"
"""End of the keys of packs into which the sweeper copied instances of another pack."""


def collection_of(stored: StoredInstance) -> str:
    """Return the collection key of an instance: its Study Instance UID, or the name of its non-patient resource."""
    return stored.study_instance_uid or stored.resource
