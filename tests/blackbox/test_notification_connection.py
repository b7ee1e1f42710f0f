"""The notification connection as the WebSocket protocol has it (RFC 6455), spoken by the package websockets."""

import json
import time
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support import instances
from tests.support.dicomweb import DicomWeb, value
from tests.support.suite import Suite
from tests.support.workitems import STATE, Reports, Worklist, new_ae_title


@pytest.fixture
def worklist(dicomweb: DicomWeb) -> Worklist:
    """The Worklist service of the suite."""
    return Worklist(dicomweb)


@pytest.mark.requirement("D-002", "W-082")
def test_the_handshake_offers_no_extension_and_takes_a_subprotocol_that_was_offered(worklist: Worklist) -> None:
    url = f"ws{worklist.dicomweb.url.removeprefix('http')}/subscribers/{new_ae_title()}"
    with connect(url, proxy=None, compression="deflate", subprotocols=["dicom", "other"]) as connection:  # type: ignore[list-item]
        assert connection.response is not None
        assert connection.response.status_code == 101
        assert "Sec-WebSocket-Extensions" not in connection.response.headers
        assert connection.subprotocol == "dicom"
    with connect(url, proxy=None) as connection:
        assert connection.subprotocol is None
        assert connection.response is not None
        assert "Sec-WebSocket-Protocol" not in connection.response.headers


def test_pings_are_answered_and_what_the_client_says_is_not_listened_to(worklist: Worklist) -> None:
    uid, ae_title = worklist.created(), new_ae_title()
    url = worklist.subscribe(uid, ae_title).headers["content-location"]
    with connect(url, proxy=None) as connection:
        reports = Reports(connection)
        assert value(reports.next_of(uid), STATE) == "SCHEDULED"
        connection.send("[]")
        connection.send(b"\x00\x01")
        assert connection.ping(b"are you there").wait(10)
        worklist.change_state(uid, "IN PROGRESS", instances.new_uid())
        assert value(reports.next_of(uid), STATE) == "IN PROGRESS"
        connection.close(1000, "done")
    assert connection.close_code == 1000


def lines_of(suite: Suite, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of the gateways' logs that have a request id."""
    text = "".join(path.read_text() for path in (suite.data / "logs").glob("gateway*.log"))
    return [json.loads(line) for line in text.splitlines(keepends=True) if request_id in line and line.endswith("\n")]


@pytest.mark.parametrize(
    ("path", "status"), [("/subscribers/{}", 101), ("/subscribers/A%2F{}", 404), ("/subscribers/{}%00", 400), ("/studies/{}", 404)]
)
def test_a_handshake_has_a_request_id_and_one_line_in_the_log(suite: Suite, worklist: Worklist, path: str, status: int) -> None:
    url = f"ws{worklist.dicomweb.url.removeprefix('http')}{path.format(new_ae_title())}"
    request_id = f"ws-{instances.new_uid()[-20:]}"
    try:
        with connect(url, proxy=None, additional_headers={"X-Request-ID": request_id}) as connection:
            response = connection.response
    except InvalidStatus as refused:
        response = refused.response
    assert response is not None
    assert (response.status_code, response.headers["x-request-id"]) == (status, request_id)
    # The line is written after the answer.
    end = time.monotonic() + 10
    while not (lines := lines_of(suite, request_id)):
        assert time.monotonic() < end, "a handshake is not in the log"
        time.sleep(0.02)
    transaction = "OpenNotificationConnection" if status == 101 else "other"
    assert [(line["event"], line["transaction"], line["status"]) for line in lines] == [("request", transaction, status)]
