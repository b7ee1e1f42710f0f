"""Failure and warning reasons of Store. To add one, add a row.

Source: PS3.18 §10.5.3, Annex I (Tables I.2-2 and I.2-3); PS3.4 §GG.4, PS3.7 Annex C for codes that PS3.18 does not describe.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """A value of Failure Reason (0008,1197) or Warning Reason (0008,1196).

    Attributes:
        code: as written into the attribute (US).
        name: for logs and metrics.
        sentence: text for the user.
        source: section of the standard; Table I.2-2 allows other codes if they are documented.
    """

    code: int
    name: str
    sentence: str
    source: str = "PS3.18 Table I.2-2"


COERCION = 0xB000
ELEMENTS_DISCARDED = 0xB006
DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING = 0xB007
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
REQUIRED_UID_MISSING = 0xA901
BULKDATA_DOES_NOT_MATCH = 0xA902
CANNOT_UNDERSTAND = 0xC000
BULKDATA_MISSING = 0xC001
BULKDATA_NOT_REFERENCED = 0xC002
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
INVALID_SOP_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORIZED = 0x0124

WARNINGS = "PS3.18 Table I.2-1"
SERVICES = "implementation specific, as PS3.7 §C.5 has it"

WARNING_REASONS: dict[int, Reason] = {
    row.code: row
    for row in (
        Reason(COERCION, "coercion", "Attributes were changed by rules of the operator.", WARNINGS),
        Reason(
            ELEMENTS_DISCARDED,
            "elements discarded",
            "Elements that metadata cannot hold (repeated, or of group 2 and below) were left out.",
            WARNINGS,
        ),
        Reason(
            DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING,
            "data set does not match SOP class",
            "Pixel data is not as long as its attributes say, or the structure was broken; it was stored as it is.",
            WARNINGS,
        ),
    )
}

FAILURE_REASONS: dict[int, Reason] = {
    row.code: row
    for row in (
        Reason(OUT_OF_RESOURCES, "out of resources", "There is no room left."),
        Reason(DATA_SET_DOES_NOT_MATCH, "data set does not match", "The data set is not what the request or its SOP class says."),
        Reason(REQUIRED_UID_MISSING, "required UID missing", "SOP Class, SOP Instance, Study or Series Instance UID is missing."),
        Reason(BULKDATA_DOES_NOT_MATCH, "bulkdata does not match", "The metadata and the bulkdata of an element contradict each other."),
        Reason(CANNOT_UNDERSTAND, "cannot understand", "The bytes cannot be read as a data set."),
        Reason(BULKDATA_MISSING, "bulkdata missing", "The metadata has a BulkDataURI that no part has as its Content-Location."),
        Reason(BULKDATA_NOT_REFERENCED, "bulkdata not referenced", "No BulkDataURI of the metadata is the Content-Location of the part."),
        Reason(TRANSFER_SYNTAX_NOT_SUPPORTED, "transfer syntax not supported", "The transfer syntax is not supported."),
        Reason(PROCESSING_FAILURE, "processing failure", "The instance passes a documented limit of this server."),
        Reason(
            DUPLICATE_SOP_INSTANCE, "duplicate SOP instance", "Another instance with this SOP Instance UID is stored already.", SERVICES
        ),
        Reason(INVALID_SOP_INSTANCE, "invalid SOP instance", "A UID of the instance breaks the rules of UIDs.", SERVICES),
        Reason(SOP_CLASS_NOT_SUPPORTED, "SOP class not supported", "The SOP class is not one that is stored."),
        Reason(NOT_AUTHORIZED, "not authorized", "The caller may not store this instance.", SERVICES),
    )
}
