"""The Worklist service over HTTP, with real workflow and NATS behind it."""

import json
from collections.abc import AsyncIterator

import pytest

from gantry.index.v1 import index_pb2
from tests.support.worklist import GLOBAL, JSON, PERFORMED, Http, Worklist, own_nats, state, uid, v, workitem, worklist


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Worklist, Http]]:
    with own_nats(tmp_path_factory.mktemp("nats")) as nats:
        async with worklist(nats) as suite, suite.workflow(), suite.gateway() as http:
            yield suite, http


@pytest.fixture
def http(running: tuple[Worklist, Http]) -> Http:
    return running[1]


async def test_a_workitem_is_created_retrieved_and_never_shows_its_transaction_uid(http: Http) -> None:
    item = uid()
    answer = await http.send("POST", f"/workitems?{item}", workitem())
    assert answer.status_code == 201
    assert answer.headers["location"] == answer.headers["content-location"] == f"{http.base}/workitems/{item}"
    assert answer.content == b""
    assert "warning" not in answer.headers
    await http.claim(item)
    answer = await http.send("GET", f"/workitems/{item}")
    assert answer.headers["content-type"] == "application/dicom+json"
    (found,) = answer.json()
    assert "00081195" not in found
    assert found["00741000"]["Value"] == ["IN PROGRESS"]
    assert found["00080018"]["Value"] == [item]
    assert found["00080016"]["Value"] == ["1.2.840.10008.5.1.4.34.6.1"]
    assert found["00404010"]["Value"]
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    "query", ["?{uid}", "?workitem={uid}", "?AffectedSOPInstanceUID={uid}", "?{uid}&accept=application/dicom%2Bjson", ""]
)
async def test_create_takes_the_uid_in_every_place_where_clients_put_it(http: Http, query: str) -> None:
    item = uid()
    inside = {} if query else {"t00080018": v("UI", item)}
    answer = await http.send("POST", "/workitems" + query.format(uid=item), workitem(**inside))
    assert answer.status_code == 201
    assert answer.headers["location"].endswith(item)


@pytest.mark.parametrize("query", ["?1.2..3", "?not-a-uid", "?1.2.3&1.2.4", "?workitem=1.a", ""])
async def test_create_without_one_good_uid_is_a_bad_request(http: Http, query: str) -> None:
    answer = await http.send("POST", "/workitems" + query, workitem())
    assert answer.status_code == 400


async def test_a_second_creation_is_a_conflict(http: Http) -> None:
    item = await http.create()
    answer = await http.send("POST", f"/workitems?{item}", workitem())
    assert answer.status_code == 409


async def test_the_life_of_a_workitem(http: Http) -> None:
    item = await http.create()
    transaction = await http.claim(item)
    answer = await http.send("PUT", f"/workitems/{item}/state", state("COMPLETED", transaction))
    assert answer.status_code == 409
    assert answer.headers["warning"] == f"299 {http.base}: The submitted request is inconsistent with the state of the UPS Instance."
    assert "(0074,1216) has no value" in answer.json()["message"]
    answer = await http.send("POST", f"/workitems/{item}?{transaction}", PERFORMED)
    assert (answer.status_code, answer.content) == (200, b"")
    answer = await http.send("PUT", f"/workitems/{item}/state", state("COMPLETED", transaction))
    assert (answer.status_code, answer.content) == (200, b"")
    answer = await http.send("PUT", f"/workitems/{item}/state", state("COMPLETED", transaction))
    assert answer.status_code == 200
    assert answer.headers["warning"].endswith(": The UPS is already in the requested state of COMPLETED.")


@pytest.mark.parametrize("form", ["?{uid}", "?transaction-uid={uid}", "?transaction={uid}"])
async def test_update_takes_the_transaction_uid_in_every_form(http: Http, form: str) -> None:
    item = await http.create()
    transaction = await http.claim(item)
    answer = await http.send("POST", f"/workitems/{item}" + form.format(uid=transaction), {"00741204": v("LO", "Other")})
    assert answer.status_code == 200
    answer = await http.send("POST", f"/workitems/{item}" + form.format(uid=uid()), {"00741204": v("LO", "Stolen")})
    assert answer.status_code == 400
    assert answer.headers["warning"].endswith(": The target URI did not reference a claimed Workitem.")
    (found,) = (await http.send("GET", f"/workitems/{item}")).json()
    assert found["00741204"]["Value"] == ["Other"]


async def test_payloads_that_are_not_one_dicom_json_data_set_are_refused(http: Http) -> None:
    path = f"/workitems?{uid()}"
    assert (await http.send("POST", path, workitem(), **{"Content-Type": "text/plain"})).status_code == 415
    assert (await http.send("POST", path, [workitem(), workitem()])).status_code == 400
    assert (await http.client.post(path, content=b"{", headers=JSON)).status_code == 400
    assert (await http.client.post(path, content=b"[7]", headers=JSON)).status_code == 400
    assert (await http.client.post(path, content=b" " * (5 << 20), headers=JSON)).status_code == 413
    assert (await http.client.post(path, content=json.dumps(workitem()), headers=JSON)).status_code == 201


@pytest.mark.parametrize("depth", [65, 84, 85, 100, 300, 341, 342, 5000])
async def test_a_workitem_with_sequences_nested_too_deep_is_refused(http: Http, depth: int) -> None:
    begin, end = b'{"0040A730": {"vr": "SQ", "Value": [', b"]}}"
    answer = await http.client.post(f"/workitems?{uid()}", content=begin * depth + b"{}" + end * depth, headers=JSON)
    assert answer.status_code == 400
    assert b"nested deeper" in answer.content or b"limit" in answer.content


async def test_what_is_not_there_or_not_acceptable(http: Http) -> None:
    item = await http.create()
    assert (await http.send("GET", f"/workitems/{uid()}")).status_code == 404
    assert (await http.send("PUT", f"/workitems/{uid()}/state", state("IN PROGRESS", uid()))).status_code == 404
    assert (await http.send("POST", f"/workitems/{uid()}/subscribers/AE1")).status_code == 404
    assert (await http.send("GET", "/workitems/not-a-uid")).status_code == 400
    assert (await http.send("GET", f"/workitems/{item}", Accept="image/png")).status_code == 406


async def test_subscribe_answers_with_the_url_of_the_notification_connection(http: Http) -> None:
    item = await http.create()
    assert await http.subscribe(item, "AE%20ONE") == f"{http.ws}/subscribers/AE%20ONE"
    assert await http.subscribe(item, "AE1", "?deletionlock=true") == f"{http.ws}/subscribers/AE1"
    assert (await http.send("POST", f"/workitems/{item}/subscribers/AE1?deletionlock=yes")).status_code == 400
    assert (await http.send("POST", f"/workitems/{item}/subscribers/{'A' * 17}")).status_code == 400
    assert (await http.send("POST", f"/workitems/{item}/subscribers/A%5CB")).status_code == 400


async def test_unsubscribe_is_200_and_then_404(http: Http) -> None:
    item = await http.create()
    for subscribed in (item, GLOBAL):
        await http.subscribe(subscribed, "GOING")
        assert (await http.send("DELETE", f"/workitems/{subscribed}/subscribers/GOING")).status_code == 200
        assert (await http.send("DELETE", f"/workitems/{subscribed}/subscribers/GOING")).status_code == 404


async def test_cancel_requests(http: Http) -> None:
    item = await http.create()
    assert (await http.client.post(f"/workitems/{item}/cancelrequest")).status_code == 202
    (found,) = (await http.send("GET", f"/workitems/{item}")).json()
    assert found["00741000"]["Value"] == ["CANCELED"]
    assert found["00741002"]["Value"][0]["00404052"]["Value"]
    answer = await http.client.post(f"/workitems/{item}/cancelrequest")
    assert answer.status_code == 202
    assert answer.headers["warning"].endswith(": The UPS is already in the requested state of CANCELED.")
    owned = await http.create()
    await http.claim(owned)
    answer = await http.send("POST", f"/workitems/{owned}/cancelrequest", {"00741238": v("LT", "Patient left")})
    assert answer.status_code == 409
    assert answer.headers["warning"].endswith(": The performer cannot be contacted.")
    await http.subscribe(owned, "PERFORMER")
    answer = await http.send("POST", f"/workitems/{owned}/cancelrequest", {"00741238": v("LT", "Patient left")})
    assert answer.status_code == 202


async def test_search_asks_index_and_waits_for_the_stream_when_told_so(running: tuple[Worklist, Http]) -> None:
    suite, http = running
    suite.index.found = index_pb2.SearchWorkitemsResponse()
    answer = await http.send("GET", "/workitems?ProcedureStepState=SCHEDULED&limit=5", **{"Cache-Control": "no-cache"})
    assert (answer.status_code, answer.content) == (204, b"")
    asked = suite.index.searches[-1]
    assert asked.current
    assert asked.limit == 5
    assert list(asked.keys[0].path) == ["00741000"]
    suite.index.found = index_pb2.SearchWorkitemsResponse(rows=[b'{"00741000":{"vr":"CS"}}'], remaining=3)
    answer = await http.send("GET", "/workitems")
    assert answer.json() == [{"00741000": {"vr": "CS"}}]
    assert answer.headers["warning"] == f"299 {http.base}: There are 3 additional results that can be requested"
    assert not suite.index.searches[-1].current
