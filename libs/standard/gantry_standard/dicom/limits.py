"""What one instance may ask of the scan, and the failure of a scan."""

from dataclasses import dataclass

from gantry_standard import errors


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is kept in memory, and on what an instance may unfold to.

    Attributes:
        elements: data elements, items and fragments together.
        depth: sequences within sequences.
        value_bytes: values that are not bulk, in total.
        inline_bytes: largest value of OB OD OF OL OV OW UN in DICOM JSON; above it becomes a BulkDataURI.
        head_bytes: preamble, prefix and group 2.
        inflated_bytes: of a deflated data set, inflated.
        inflation_ratio: inflated bytes per deflated byte, once 64 MiB are inflated (Deflate reaches 1032).
    """

    elements: int = 2_000_000
    depth: int = 64
    value_bytes: int = 64 << 20
    inline_bytes: int = 1024
    head_bytes: int = 1 << 20
    inflated_bytes: int = 4 << 30
    inflation_ratio: int = 256


class ScanFailure(errors.CorruptInstance):
    """An instance that cannot be stored, as data for the response of the Store transaction.

    Attributes:
        reason: Failure Reason (0008,1197), a row of `reasons.FAILURE_REASONS`.
        study_instance_uid, series_instance_uid, sop_class_uid, sop_instance_uid: as far as the scan came to know them, else "".
    """

    def __init__(
        self,
        message: str,
        reason: int,
        *,
        study_instance_uid: str = "",
        series_instance_uid: str = "",
        sop_class_uid: str = "",
        sop_instance_uid: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.study_instance_uid = study_instance_uid
        self.series_instance_uid = series_instance_uid
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid


class BrokenStructure(ScanFailure):
    """Bytes that contradict themselves; not ones that are cut off, too many, or no data set at all.

    Another reader may know what is meant.
    """
