"""The records of the instances of one response, in little memory, as a study may have a hundred thousand instances.

Source: PS3.18 §10.4.3.3.
"""

from gantry.blob.v1.blob_pb2 import Layout, Location, StoredInstance
from gantry.index.v1.index_pb2 import InstanceRecord
from gantry_gateway.content.records import Records
from gantry_standard import errors

WHOLE_BYTES = 32 << 20
"""Most bytes of whole records of one response. Other records are requested from index again when their instance is sent."""


class AnswerRecords:
    """Encoded records in the order in which they were added.

    Each record has at least the fields that are needed to send the instance as stored, about 250 bytes. Whole records, with their frame
    tables, are stored until they have `most_bytes`.
    """

    def __init__(self, records: Records, study_instance_uid: str, most_bytes: int = WHOLE_BYTES) -> None:
        self._records = records
        self._study = study_instance_uid
        self._left_bytes = most_bytes
        self._encoded: list[bytes] = []
        self._is_whole = bytearray()
        self._latest: tuple[int, InstanceRecord] = (-1, InstanceRecord())

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self._encoded)

    @property
    def are_whole(self) -> bool:
        """Whether all records are stored as a whole."""
        return all(self._is_whole)

    def add(self, record: InstanceRecord, whole: bool) -> None:
        """Append a record.

        Args:
            whole: store the whole record, if it fits.
        """
        if whole and record.ByteSize() <= self._left_bytes:
            encoded = record.SerializeToString()
            self._left_bytes -= len(encoded)
            self._encoded.append(encoded)
            self._is_whole.append(1)
        else:
            self._encoded.append(_slim(record).SerializeToString())
            self._is_whole.append(0)

    def stored(self, index: int) -> StoredInstance:
        """Return the stored fields of an instance: UIDs, object and served form, or all fields if the record is whole."""
        return self._decoded(index).stored

    def whole(self, index: int) -> InstanceRecord:
        """Return the whole record of an instance. Only if `are_whole`."""
        return self._decoded(index)

    def version(self, index: int) -> int:
        """Return the version of an instance's record."""
        return self._decoded(index).version

    async def record(self, index: int) -> InstanceRecord:
        """Return the whole record, from index if it is not stored.

        Raises:
            errors.NotFound, errors.Gone: the instance was deleted.
            errors.Unavailable: the instance was replaced meanwhile, or index does not answer.
        """
        return self._decoded(index) if self._is_whole[index] else await self.present(index)

    async def present(self, index: int) -> InstanceRecord:
        """Return the present record from index, which must have the same content. Errors as `record`."""
        stored = self._decoded(index).stored
        record = await self._records.ask(self._study, stored.series_instance_uid, stored.sop_instance_uid)
        if record.stored.dataset_digest != stored.dataset_digest:
            raise errors.Unavailable(f"instance {stored.sop_instance_uid} was replaced while it was sent")
        return record

    def _decoded(self, index: int) -> InstanceRecord:
        if self._latest[0] != index:
            self._latest = (index, InstanceRecord.FromString(self._encoded[index]))
        return self._latest[1]


def _slim(record: InstanceRecord) -> InstanceRecord:
    stored = record.stored
    return InstanceRecord(
        version=record.version,
        stored=StoredInstance(
            study_instance_uid=stored.study_instance_uid,
            series_instance_uid=stored.series_instance_uid,
            sop_instance_uid=stored.sop_instance_uid,
            sop_class_uid=stored.sop_class_uid,
            dataset_digest=stored.dataset_digest,
            location=Location(object=stored.location.object),
            layout=Layout(
                wire_transfer_syntax_uid=stored.layout.wire_transfer_syntax_uid,
                wire=stored.layout.wire,
                pixel_element=stored.layout.pixel_element if stored.layout.HasField("pixel_element") else None,
            ),
        ),
    )
