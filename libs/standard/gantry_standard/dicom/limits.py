"""The limits of a scan, and its failure."""

from dataclasses import dataclass

from gantry_standard import errors


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for memory and for the size of an inflated instance.

    Attributes:
        elements: data elements, items and fragments together.
        depth: nested sequences.
        value_bytes: values that are not bulkdata, in total.
        inline_bytes: largest inline value of OB OD OF OL OV OW UN in DICOM JSON; a larger one becomes a BulkDataURI.
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
    """An instance cannot be stored. The attributes are data for the store response.

    Attributes:
        reason: Failure Reason (0008,1197), a row of `reasons.FAILURE_REASONS`.
        study_instance_uid, series_instance_uid, sop_class_uid, sop_instance_uid: as far as the scan has read them, else "".
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
    """The bytes are inconsistent, but not truncated, too many, or something other than a data set.

    A more tolerant reader may be able to read them.
    """
