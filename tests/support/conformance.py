"""Writes docs/conformance.md from the tables of the code and from what the last run showed (`make requirements`).

Each table of the statement is made by one function of a table of the code; tests/unit/test_conformance.py compares the
committed page with them, so that the page cannot disagree with the program.

Source: PS3.2 Annex N; PS3.18 §6.
"""

from collections.abc import Iterable

from gantry_blob.settings import BlobSettings
from gantry_gateway.http.routes import EVERY_RESOURCE, ROUTES, URI_SERVICE, WEBSOCKET, Route
from gantry_gateway.settings import GatewaySettings
from gantry_gateway.studies.pictures import TRANSFORMED
from gantry_renderer.codecs.table import CODECS, REWRITES, Codec, Takes
from gantry_runtime.settings import describe
from gantry_standard import reasons, workitems
from gantry_standard.bitstreams.still import STILL_MEDIA_TYPES
from gantry_standard.bitstreams.video import VIDEO_MEDIA_TYPES
from gantry_standard.dicom import sop_classes, transfer_syntaxes
from gantry_standard.http import media_types
from gantry_standard.query import query_attributes
from tests.support.requirements import CONFORMANCE, Row

EXPLICIT = transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN
NEVER_LEAVE = (
    transfer_syntaxes.IMPLICIT_VR_LITTLE_ENDIAN,
    transfer_syntaxes.EXPLICIT_VR_BIG_ENDIAN,
    transfer_syntaxes.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
)

ROWS_OF = {
    "Search": ("Q-",),
    "Store": ("S-",),
    "Retrieve": ("R-", "X-"),
    "Delete": ("A-054", "R-032"),
    "Workitem": ("W-",),
}
"""Rows that concern transactions whose name holds the word; the first word that fits counts."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    heads = list(head)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


WEBSOCKETS = {route.path for route in ROUTES if route.method == WEBSOCKET}
TRANSACTIONS = [route for route in (*ROUTES, *URI_SERVICE) if route.method != "GET" or route.path not in WEBSOCKETS or route in URI_SERVICE]
"""All rows, without those that answer a GET of a WebSocket that is no handshake."""


def transactions() -> str:
    """Every transaction of PS3.18 and whether it is offered."""
    return table(
        ("transaction", "method", "resource", "status"),
        ((r.transaction, r.method, _resource(r), "offered" if r.handler else "501, not offered") for r in TRANSACTIONS),
    )


def _resource(route: Route) -> str:
    if route in URI_SERVICE:
        return "the URI service, at `GANTRY_WADO_PATH`"
    return "every resource" if route.path == EVERY_RESOURCE else route.path.replace(":path", "")


def store_reasons() -> str:
    """Failure and warning reasons of Store."""
    rows = [*reasons.FAILURE_REASONS.values(), *reasons.WARNING_REASONS.values()]
    return table(
        ("code", "name", "meaning", "source"), ((f"{row.code:04X}H ({row.code})", row.name, row.sentence, row.source) for row in rows)
    )


def storage_classes() -> str:
    """SOP classes that can be stored."""
    return table(("SOP class", "name"), sop_classes.storage_sop_classes().items())


def store_payloads() -> str:
    """What a part of a store request may be, by media type, and what becomes of it."""
    rows = [
        (media_types.DICOM, "an instance, kept byte for byte; also without multipart"),
        (
            f"{media_types.DICOM_JSON}, {media_types.DICOM_XML}",
            "metadata: data sets whose bulkdata are other parts; JSON: an array, XML: one document a part",
        ),
        (media_types.OCTET_STREAM, "bulkdata, little endian; named with the transfer syntax of a compressed image also that"),
        *(
            (name, f"unchanged: {', '.join(uid.removeprefix('1.2.840.10008.1.2.') for uid in media_types.BULKDATA[name])}")
            for name in media_types.BULKDATA
            if name in STILL_MEDIA_TYPES | VIDEO_MEDIA_TYPES
        ),
        (", ".join(TRANSFORMED), "transformed to Explicit VR Little Endian"),
        ("any other", "an encapsulated document (0042,0011), if the metadata agrees with it"),
    ]
    return table(("media type of the part", "what it is, or the transfer syntaxes that it is put into (after 1.2.840.10008.1.2.)"), rows)


def configuration() -> str:
    """Base URLs, ports and what else the gateway can be told."""
    return table(("setting", "default", "what"), ((f"`{name}`", default, doc) for name, default, doc in describe(GatewaySettings)))


def matching_keys() -> str:
    """Matching and return keys of the Studies search."""
    rows = ((a.entity.name.lower(), a.keyword, a.tag, a.returned.name.lower()) for a in query_attributes.ATTRIBUTES)
    return table(("entity", "attribute", "tag", "returned"), rows)


def syntaxes() -> str:
    """Transfer syntaxes that can be stored, and how they leave."""
    return table(
        ("transfer syntax", "name", "as stored it leaves as"),
        ((t.uid, t.name, t.uid if t.uid not in NEVER_LEAVE else EXPLICIT) for t in transfer_syntaxes.TRANSFER_SYNTAXES.values()),
    )


def representations() -> str:
    """Media types of each resource, in the order of preference."""
    return table(
        ("resource", "media types"),
        (
            (
                resource.value,
                ", ".join(f"{'multipart of ' if o.multipart else ''}{o.media_type}{' (by name)' if o.by_name else ''}" for o in offers),
            )
            for resource, offers in media_types.OFFERS.items()
        ),
    )


def transcoding() -> str:
    """Transfer syntaxes that frames are decoded from and encoded to."""
    rewritten = {target: source for source, target in REWRITES}

    def made(uid: str) -> str:
        codec = CODECS[uid]
        if codec.encode:
            return "lossy, by name only" if codec.loss else "lossless"
        return f"from {rewritten[uid]}, bit stream unchanged" if uid in rewritten else "no"

    rows = ((uid, codec.name, made(uid), _taken(codec), ", ".join(f"{a} → {b}" for a, b in codec.renamed)) for uid, codec in CODECS.items())
    return table(("transfer syntax", "name", "encoded to", "takes", "Photometric Interpretation"), rows)


def _taken(codec: Codec) -> str:
    def one(takes: Takes) -> str:
        allocated = "/".join(map(str, sorted(takes.allocated)))
        sign = "" if takes.signed else ", unsigned"
        names = ", ".join(sorted(takes.interpretations)) or "any"
        return f"{names}: {allocated} bits, {takes.stored.start} to {takes.stored[-1]} stored{sign}"

    return "; ".join(map(one, codec.takes))


def workitem_attributes() -> str:
    """What each attribute of a workitem must be, and whether it is matched and returned."""
    rows = ((f"{'>' * (len(a.path) - 1)}{a.keyword}", a.tag, a.create, a.set, a.final, a.match, a.returned) for a in workitems.ATTRIBUTES)
    return table(("attribute", "tag", "create", "set", "final state", "matching key", "return key"), rows)


WORKLIST = (
    "SOP classes: UPS Push, Pull, Watch, Event and Query. The table is PS3.4 Table CC.2.5-3 (types requester/server; `NA` not "
    "allowed; final: R both, P COMPLETED, p may be empty, X CANCELED; match: U unique, R required, O optional). Any other "
    "attribute may be set, matched and returned, except bulkdata (groups 50xx, 54xx, 60xx, 7FE0, and values by BulkDataURI), "
    "which is left out with a Warning.\n\n"
    "*Create*: missing attributes of type 2 are added empty with a Warning, or refused (`GANTRY_WORKITEM_CREATE=strict`). "
    "Worklist Label, where it is missing, is `Worklist`. *Update*: an attribute that may not be set refuses the whole update. "
    "*State*: the Transaction UID of the claim is the only lock; the server never returns it. CANCELED gets the time of "
    "cancellation and, without a reason, (110513, DCM). *Request cancellation*: a SCHEDULED workitem becomes CANCELED by way "
    "of IN PROGRESS. If it is IN PROGRESS, its subscribers get a report; without subscribers the answer is 409. The server is "
    "not a performer and never refuses for one. Requesting AE is `GANTRY_REQUESTING_AE`.\n\n"
    "*Search*: keys as in the Studies search. Keys of one sequence must match in one item. A DT without an offset is UTC. The "
    "order is Scheduled Procedure Step Start DateTime, then UID. Transaction UID as a key is 400. LT, ST and UT are matched by "
    "their first 1,024 characters.\n\n"
    "*Subscriptions*: any AE title may subscribe. Deletion locks are granted, unless `GANTRY_DELETION_LOCKS=false` (Warning). "
    "One AE title may have one subscription to the whole worklist and up to 64 filtered ones (1,000 of all; more is 403). A "
    "filter is compared like a search; a key that cannot be matched is 400. A filtered subscription covers a workitem while it "
    "matches: its subscriber gets the change by which it begins to match, all changes while it matches, and the change by "
    "which it stops matching. Its lock holds while the workitem matches. DELETE and suspend apply to all filters of the AE "
    "title, or to the one in the query. Unsubscribing from the whole worklist also ends the subscriptions to workitems, but "
    "not the filtered ones. A refused or lost delivery changes no subscription.\n\n"
    "*Deletion*: a final workitem without deletion lock is deleted `GANTRY_WORKITEM_KEEP_S` after its last change, or after "
    "the end of the subscription that held the lock. It answers 410 for `GANTRY_WORKITEM_TOMBSTONE_S`, then 404. Until then "
    "its UID cannot be used again."
)

SECTIONS = (
    ("Transactions", transactions, "Role: origin server, native (no DIMSE behind it). Every resource below `GANTRY_BASE_PATH`."),
    ("Configuration", configuration, "Base URI, port and policies of the gateway; all services: [operations](operations.md)."),
    (
        "Search keys",
        matching_keys,
        "At most `GANTRY_SEARCH_MAX_RESULTS` matches per page, paged by `limit` and `offset` up to 100,000. Person names match "
        "without regard to case and accents, also with wildcards. Other text is case sensitive. DS and IS are compared as "
        "numbers, dates and times by meaning. Any other attribute of the instance can be a matching key too, at any depth.",
    ),
    ("Worklist", workitem_attributes, WORKLIST),
    (
        "Transfer syntaxes",
        syntaxes,
        "Instances in transfer syntaxes that PS3.18 §8.7.3 forbids in responses are sent as Explicit VR Little Endian; the "
        "original is kept byte for byte.",
    ),
    (
        "Representations",
        representations,
        "The first is selected by `*/*`. Those marked *by name* are not selected by a wildcard: octet-stream of a study, "
        "series or instance is its bulkdata, and `application/zip` is an extension (files as stored with a DICOMDIR). Without "
        "a named transfer syntax the answer is Explicit VR Little Endian, or the default of the compressed media type; pixel "
        "data that is lossy and cannot be decoded (video), or is too long uncompressed, is then sent as stored. A request for "
        "several ranges is answered with the whole. HTTP/2 (A-002) is provided by the proxy in front, which also speaks TLS; "
        "between it and the gateway HTTP/1.1 does not limit anything.",
    ),
    (
        "Transcoding",
        transcoding,
        "All of these are decoded. Lossless encoding keeps every allocated bit. Float pixel data, 4 samples per pixel, "
        "YBR_PARTIAL and pixels that a row does not take are 406 in that transfer syntax; the body lists the available "
        "representations. Not decoded: video, JPEG processes without a decoder, JPIP, and JPEG 2000 Part 2 with several frames "
        "in one code stream. Deflated Explicit VR Little Endian is inflated when it is stored and not sent.\n\n"
        "Lossy compression makes another instance (PS3.3 §C.7.6.1.1.2). Its SOP Instance UID is 2.25 and a UUID made of the "
        "original's UID and the transfer syntax, the same for every request. Image Type begins with DERIVED. Lossy Image "
        "Compression is 01; Ratio (that of the first frame) and Method are appended. Derivation Description, Derivation Code "
        "Sequence (113040) and Source Image Sequence (the original, 121320) are written. Frame Type of functional groups "
        "stays. Single frames have no UID. Quality: JPEG 90, JPEG-LS NEAR 2, JPEG 2000 60 dB, HTJ2K steps of 0.16 % of the "
        "range, JPEG XL distance 0.1. Lossy pixels that are decoded keep their UID; Lossy Image Compression becomes 01 if it "
        "was missing.",
    ),
    (
        "Store reasons",
        store_reasons,
        "Any storage SOP class is accepted, private and unknown ones too unless `GANTRY_ACCEPT_PRIVATE_SOP_CLASSES=false`. "
        "Classes that are not storage classes are refused with 0122H. Attributes are coerced only by the rules of "
        "`GANTRY_COERCION_RULES`. Rules change text attributes of the data set, never UIDs, pixel data or attributes that "
        "describe it. Each change is reported with B000H and an item of the Original Attributes Sequence, in the answer and in "
        "the object. The same upload again is 200 and changes nothing. A part that is not an instance, or does not identify "
        "itself, is an item of the Other Failures Sequence. Of several warning reasons the response contains one: B000H, else "
        "B007H, else B006H. A full disk is 503 with `Warning: A700`, and nothing is stored.",
    ),
    (
        "SOP classes",
        storage_classes,
        "Stored whatever `GANTRY_ACCEPT_PRIVATE_SOP_CLASSES` says. An instance is stored with all its attributes, standard and "
        "private (level 2, full).",
    ),
)


def statement(rows: dict[str, Row], found: dict[str, list[str]]) -> str:
    """Return the whole page.

    Args:
        rows: tests/requirements.md.
        found: rows that the last run showed, with their tests.
    """
    tests = table(("transaction", "status", "rows shown", "tests"), _tests(found))
    return "\n\n".join([*_of_code(), REQUIREMENTS_TITLE, _requirements(rows, found), "## Tests of each transaction", tests]) + "\n"


REQUIREMENTS_TITLE = "## Requirements"


def _of_code() -> list[str]:
    """Return the parts of the page that depend on the code alone."""
    parts = [
        "# Conformance statement",
        "Written by `make requirements` from the tables of the code and the last run of the tests. Section numbers are those of PS3.18.",
    ]
    for title, make, note in SECTIONS:
        parts += [f"## {title}", note, make()]
    return [
        *parts,
        "## Metadata, character sets and content codings",
        REPRESENTATIONS,
        "## Store payloads",
        STORE_PAYLOADS,
        store_payloads(),
        "## Notifications",
        NOTIFICATIONS,
        "## Security",
        security(),
    ]


def with_tables_of_code(page: str) -> str:
    """Return a page with the parts that depend on the code as they are now, and those about tests as they are in it."""
    return "\n\n".join(_of_code()) + "\n\n" + page[page.index(f"\n{REQUIREMENTS_TITLE}\n") + 1 :]


REPRESENTATIONS = (
    "Metadata, search results and store responses are DICOM JSON or Native DICOM Model XML, by negotiation; choices that "
    "PS3.19 leaves open are in [decision 0020](decisions/0020-native-xml.md). Both are UTF-8; other values of `charset` and "
    "Accept-Charset are ignored. They are coded with zstd or gzip if Accept-Encoding names it; other payloads are not coded. "
    "Values of OB, OD, OF, OL, OV, OW and UN above 1,024 bytes, pixel data, and FL and FD that are not finite numbers are a "
    "BulkDataURI."
)
STORE_PAYLOADS = (
    "Parts may come in any order. Bulkdata is found by its Content-Location, which equals the BulkDataURI literally or after "
    "both are resolved against the request URI. Several parts with one location, or parts at its `/frames/1`, `/frames/2` …, "
    "are the frames of Pixel Data. The transfer syntax is the one named by the part or its metadata if it agrees with the bit "
    "stream, else that of the bit stream. Missing Image Pixel Description attributes come from the bit stream. Rows, Columns, "
    "Samples per Pixel and Bits Allocated that contradict it fail the instance (A902H). JP2 files are stored as their "
    "codestream. For PNG and GIF the attributes describe the result: palettes become RGB, transparency is dropped, an animated "
    "GIF keeps all its frames. Of videos only MP4 files contain Number of Frames. Arithmetic and progressive JPEG is stored in "
    "the retired transfer syntax of its process. JPEG XL that names none is 4.112."
)
NOTIFICATIONS = (
    "Supported: WebSocket (RFC 6455) at `/subscribers/{aetitle}` below the base; the URL is the Content-Location of the "
    "Subscribe answer. `/ws/subscribers/{aetitle}` and the base itself with `?requester=` are equivalent. The AE title in the "
    "URL selects the reports. An AE title may have any number of connections, on any gateway; each gets all of its reports. "
    "One text frame holds one DICOM JSON object. Messages of a subscriber are ignored; one above 64 KiB closes the connection "
    "(1009). A ping is sent every 20 s and soon after a report. A peer that does not answer within 20 s is disconnected "
    "(1011). A gateway that stops sends 1012. A report whose arrival was not confirmed (ping and pong) may be repeated after a "
    "broken connection, with the same Message ID. An absent subscriber gets the reports that it missed, of the last 7 days and "
    "1,000,000 reports; for older ones it gets an SCP Status Change (Unified Procedure Step List Status COLD START: read the "
    "worklist again). After every restart all connected and returning subscribers get one, and so do "
    "`GANTRY_FALLBACK_AE_TITLES`: WARM START, or COLD START if no data of an earlier run exists."
)
SECURITY = (
    "The server has no access control. It listens on the loopback address unless told otherwise, and answers there for its own "
    "host names only. Only browser pages of local origins may read its answers and send changes. Forwarding headers count from "
    "trusted proxies only. Run it behind a proxy that authenticates and speaks TLS. Logs, metrics and error "
    "messages contain no patient attributes. The scan of an upload uses bounded memory. A second reader runs in a process with "
    "its own limits. A preamble that could be executed is sent as zeros. Limits of a request:"
)
SECURITY_SETTINGS = (
    "GANTRY_HOST",
    "GANTRY_ALLOWED_HOSTS",
    "GANTRY_TRUSTED_PROXIES",
    "GANTRY_CORS_ORIGINS",
    "GANTRY_STORE_MAX_BYTES",
    "GANTRY_STORE_MAX_PARTS",
    "GANTRY_STORE_MAX_S",
    "GANTRY_UPLOAD_IDLE_S",
    "GANTRY_SCAN_MAX_ELEMENTS",
    "GANTRY_SCAN_MAX_DEPTH",
    "GANTRY_SCAN_MAX_VALUE_BYTES",
    "GANTRY_SCAN_MAX_INFLATED_BYTES",
    "GANTRY_FALLBACK_MAX_BYTES",
    "GANTRY_FALLBACK_TIMEOUT_S",
)


def security() -> str:
    """Security mechanisms: what there is, and the settings that bound a request."""
    known = {name: (name, default, doc) for cls in (GatewaySettings, BlobSettings) for name, default, doc in describe(cls)}
    rows = ((f"`{name}`", *known[name][1:]) for name in SECURITY_SETTINGS)
    return SECURITY + "\n\n" + table(("setting", "default", "what"), rows)


def _requirements(rows: dict[str, Row], found: dict[str, list[str]]) -> str:
    body = []
    for section in dict.fromkeys(row.section for row in rows.values()):
        ids = [row.id for row in rows.values() if row.section == section]
        body.append((section, str(len(ids)), str(sum(row in found for row in ids)), " ".join(row for row in ids if row not in found)))
    return table(("section", "rows", "shown", "not shown"), body)


def _tests(found: dict[str, list[str]]) -> list[tuple[str, ...]]:
    lines = []
    for kind in dict.fromkeys(_kind(route.transaction) for route in TRANSACTIONS if route.handler):
        names = ", ".join(route.transaction for route in TRANSACTIONS if route.handler and _kind(route.transaction) == kind)
        shown = [row for row in sorted(found) if row.startswith(ROWS_OF.get(kind, ("-",)))]
        files = sorted({test.split("::")[0] for row in shown for test in found[row]})
        lines.append((names, "offered", " ".join(shown), ", ".join(files)))
    return lines


def _kind(transaction: str) -> str:
    order = ("Workitem", "Search", "Store", "Retrieve", "Delete")
    return next((word for word in order if word in transaction), "Workitem")


if __name__ == "__main__":
    CONFORMANCE.write_text(with_tables_of_code(CONFORMANCE.read_text()))
