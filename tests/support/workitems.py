"""Makes workitems for tests, and opens the notification connection of an AE title."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support import instances
from tests.support.dicomweb import JSON, DicomWeb, Object
from tests.support.native_xml import NAMESPACE

GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"
UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"

STATE, READINESS, TRANSACTION_UID, PROGRESS, PERFORMED = "00741000", "00404041", "00081195", "00741002", "00741216"


def code(meaning: str, value: str = "C1") -> Object:
    """Return a sequence with one code item."""
    return {
        "vr": "SQ",
        "Value": [
            {
                "00080100": {"vr": "SH", "Value": [value]},
                "00080102": {"vr": "SH", "Value": ["99TEST"]},
                "00080104": {"vr": "LO", "Value": [meaning]},
            }
        ],
    }


def workitem(**changes: Any) -> Object:
    """Return a data set that may be created; `changes` replaces elements by tag (x00741204=…), None leaves one out."""
    empty = {
        "00081195": "UI", "00081080": "LO", "00081084": "SQ", "00100021": "LO", "00100024": "SQ", "00100030": "DA", "00100040": "CS",
        "00101002": "SQ", "00380010": "LO", "00380014": "SQ", "00400400": "LT", "00404018": "SQ", "00404021": "SQ", "00404025": "SQ",
        "00404026": "SQ", "00404027": "SQ", "00404034": "SQ", "0040A370": "SQ", "00741002": "SQ", "00741210": "SQ", "00741216": "SQ",
    }  # fmt: skip
    data_set: Object = {tag: {"vr": vr} for tag, vr in empty.items()}
    data_set |= {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
        "00100020": {"vr": "LO", "Value": ["P-1"]},
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "00404005": {"vr": "DT", "Value": ["20260101120000"]},
        "00404041": {"vr": "CS", "Value": ["READY"]},
        "00741000": {"vr": "CS", "Value": ["SCHEDULED"]},
        "00741200": {"vr": "CS", "Value": ["MEDIUM"]},
        "00741202": {"vr": "LO", "Value": ["AI"]},
        "00741204": {"vr": "LO", "Value": ["Segment liver"]},
    }
    for name, element in changes.items():
        data_set.pop(name[1:], None)
        if element is not None:
            data_set[name[1:]] = element
    return dict(sorted(data_set.items()))


def performed() -> Object:
    """Return an update that meets the requirements of COMPLETED."""
    item = {
        "00404019": code("Segmentation"),
        "00404028": code("Workstation 1"),
        "00404033": {"vr": "SQ"},
        "00404050": {"vr": "DT", "Value": ["20260101120000"]},
        "00404051": {"vr": "DT", "Value": ["20260101123000"]},
    }
    return {PERFORMED: {"vr": "SQ", "Value": [item]}}


def document(data_set: Object, encoding: str = "UTF-8") -> bytes:
    """Return a data set as a document of the Native DICOM Model (PS3.19 §A.1), written with ElementTree."""
    root = ElementTree.Element("NativeDicomModel", xmlns=NAMESPACE)
    _write(root, data_set)
    found: bytes = ElementTree.tostring(root, encoding=encoding, xml_declaration=True)
    return found


def _write(parent: ElementTree.Element, data_set: Object) -> None:
    for tag, element in data_set.items():
        attribute = ElementTree.SubElement(parent, "DicomAttribute", tag=tag, vr=element["vr"])
        for number, value in enumerate(element.get("Value", []), 1):
            if element["vr"] == "SQ":
                _write(ElementTree.SubElement(attribute, "Item", number=str(number)), value)
            elif element["vr"] == "PN":
                name = ElementTree.SubElement(attribute, "PersonName", number=str(number))
                for group, text in value.items():
                    components = ElementTree.SubElement(name, group)
                    for part, component in zip(("FamilyName", "GivenName", "MiddleName"), text.split("^"), strict=False):
                        ElementTree.SubElement(components, part).text = component
            else:
                ElementTree.SubElement(attribute, "Value", number=str(number)).text = str(value)


class Worklist:
    """The transactions of the Worklist service."""

    def __init__(self, dicomweb: DicomWeb) -> None:
        self.dicomweb = dicomweb

    def create(self, data_set: Object | None = None, uid: str = "") -> tuple[str, httpx.Response]:
        """Create a workitem, under a new UID where none is given."""
        uid = uid or instances.new_uid()
        return uid, self.send("POST", f"/workitems?{uid}", data_set or workitem())

    def created(self, **changes: Any) -> str:
        """Create a workitem, check that it was created, and return its UID."""
        uid, response = self.create(workitem(**changes))
        assert response.status_code == 201, response.text
        return uid

    def claimed(self, **changes: Any) -> tuple[str, str]:
        """Create and claim a workitem; return its UID and the Transaction UID."""
        uid, transaction = self.created(**changes), instances.new_uid()
        assert self.change_state(uid, "IN PROGRESS", transaction).status_code == 200
        return uid, transaction

    def send(self, method: str, path: str, data_set: Object | None = None) -> httpx.Response:
        """Send a workitem's data set as an array of one, or nothing."""
        if data_set is None:
            return self.dicomweb.request(method, path, JSON)
        return self.dicomweb.request(method, path, JSON, {"Content-Type": JSON}, content=json.dumps([data_set]))

    def get(self, uid: str) -> Object:
        """Retrieve a workitem."""
        response = self.dicomweb.get(f"/workitems/{uid}", JSON)
        assert response.status_code == 200, response.text
        (data_set,) = response.json()
        return dict(data_set)

    def update(self, uid: str, data_set: Object, transaction: str = "") -> httpx.Response:
        """Update a workitem."""
        return self.send("POST", f"/workitems/{uid}{'?' if transaction else ''}{transaction}", data_set)

    def change_state(self, uid: str, state: str, transaction: str = "") -> httpx.Response:
        """Change the state; without a Transaction UID where none is given."""
        data_set: Object = {STATE: {"vr": "CS", "Value": [state]}}
        if transaction:
            data_set[TRANSACTION_UID] = {"vr": "UI", "Value": [transaction]}
        return self.send("PUT", f"/workitems/{uid}/state", data_set)

    def completed(self, **changes: Any) -> tuple[str, str]:
        """Create, claim and complete a workitem; return its UID and the Transaction UID."""
        uid, transaction = self.claimed(**changes)
        assert self.update(uid, performed(), transaction).status_code == 200
        assert self.change_state(uid, "COMPLETED", transaction).status_code == 200
        return uid, transaction

    def request_cancellation(self, uid: str, reasons: Object | None = None) -> httpx.Response:
        """Ask for cancellation, without a payload where no reasons are given."""
        return self.send("POST", f"/workitems/{uid}/cancelrequest", reasons)

    def found(self, query: str) -> list[str]:
        """Return the UIDs that a search finds as of now."""
        rows = self.dicomweb.search(f"/workitems?{query}", headers={"Cache-Control": "no-cache"})
        return [row["00080018"]["Value"][0] for row in rows]

    def suspend(self, uid: str, ae_title: str) -> httpx.Response:
        """Suspend a subscription to the worklist."""
        return self.send("POST", f"/workitems/{uid}/subscribers/{ae_title}/suspend")

    def subscribe(self, uid: str, ae_title: str, query: str = "") -> httpx.Response:
        """Subscribe an AE title to a workitem or the global worklist."""
        return self.send("POST", f"/workitems/{uid}/subscribers/{ae_title}{query}")

    def unsubscribe(self, uid: str, ae_title: str) -> httpx.Response:
        """End a subscription."""
        return self.send("DELETE", f"/workitems/{uid}/subscribers/{ae_title}")


class Reports:
    """The event reports that one connection receives."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def next(self, timeout_s: float = 10) -> Object:
        """Return the next report. Raises TimeoutError if none comes in time."""
        message = self.connection.recv(timeout_s)
        assert isinstance(message, str), "a report is no text frame"
        report = json.loads(message)
        assert isinstance(report, dict), "a report is no single object"
        return report

    def next_of(self, uid: str, event_type: int = 0, timeout_s: float = 10) -> Object:
        """Return the next report about a workitem (of a type), passing others."""
        while True:
            report = self.next(timeout_s)
            if report["00001000"]["Value"] == [uid] and event_type in (0, report["00001002"]["Value"][0]):
                return report

    def next_of_type(self, event_type: int, timeout_s: float = 10) -> Object:
        """Return the next report of a type, passing others."""
        while True:
            report = self.next(timeout_s)
            if report["00001002"]["Value"] == [event_type]:
                return report

    def none_of(self, uid: str, wait_s: float = 1) -> bool:
        """Say whether no report about a workitem comes for a while."""
        try:
            self.next_of(uid, timeout_s=wait_s)
        except TimeoutError:
            return True
        return False


@contextmanager
def listening(dicomweb: DicomWeb, ae_title: str, path: str = "/subscribers/{}", headers: dict[str, str] | None = None) -> Iterator[Reports]:
    """Open the notification connection of an AE title."""
    url = f"ws{dicomweb.url.removeprefix('http')}{path.format(ae_title)}"
    with connect(url, proxy=None, open_timeout=10, close_timeout=2, additional_headers=headers) as connection:
        yield Reports(connection)


def new_ae_title() -> str:
    """Return a new AE title."""
    return f"AE{instances.new_uid()[-12:]}"
