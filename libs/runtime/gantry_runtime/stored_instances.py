"""Stored instances as blob and index name them."""

from gantry.blob.v1.blob_pb2 import StoredInstance


def collection_of(stored: StoredInstance) -> str:
    """Return the collection key of an instance: its Study Instance UID, or the name of its non-patient resource."""
    return stored.study_instance_uid or stored.resource
