"""A caller who may see one study of three, on every route: what it may not see is answered as what never was.

Every row of the table of mounts needs a case here: a row without a handler is 501 for everybody, a row with one has a check in CHECKS.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset

from gantry.index.v1 import index_pb2
from gantry.index.v1.index_pb2_grpc import IndexServiceStub
from gantry_gateway.http.routes import EVERY_RESOURCE, WEBSOCKET, Route, mounts
from gantry_gateway.settings import GatewaySettings
from gantry_runtime import call_context
from gantry_runtime.call_context import CallContext
from gantry_runtime.callers import ANONYMOUS, Caller
from gantry_runtime.rpc import channels, rpc_errors
from gantry_standard import errors
from gantry_standard.workitems import FILTERED_SUBSCRIPTION, GLOBAL_SUBSCRIPTION
from tests.support import instances
from tests.support.dicomweb import JSON, XML, DicomWeb, value
from tests.support.gateway_of_callers import MAY_SEE
from tests.support.suite import AnotherGateway, Suite, another_gateway
from tests.support.workitems import Worklist, listening, new_ae_title, performed, workitem

MOUNTS = mounts(GatewaySettings())
ROWS = [(mount.path, route) for mount in MOUNTS for route in mount.routes]
STUDY, SOP = "0020000D", "00080018"
FAILED_SOP_SEQUENCE, FAILURE_REASON = "00081198", "00081197"
NOT_AUTHORIZED, DUPLICATE = 0x0124, 0x0111
JPEG_LS = 'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80'


def referring(*studies: str, **changes: Any) -> dict[str, Any]:
    """Return a workitem that is about the first study and has all of them as its input."""
    items = [{STUDY: {"vr": "UI", "Value": [study]}} for study in studies]
    own = {"vr": "UI", "Value": [studies[0]]} if studies else {"vr": "UI"}
    return workitem(x0020000D=own, x00404021={"vr": "SQ", "Value": items} if items else {"vr": "SQ"}, **changes)


@dataclass
class World:
    """Three studies of one patient and their workitems; a client that may see the first of them, and one that sees everything."""

    gateway: AnotherGateway
    everybody: DicomWeb
    restricted: DicomWeb
    patient_id: str = field(default_factory=instances.new_uid)
    visible: Dataset = field(init=False)
    hidden: Dataset = field(init=False)
    other: Dataset = field(init=False)
    workitems: dict[str, str] = field(default_factory=dict)

    def client(self, *studies: str) -> dict[str, str]:
        """Return the header of a caller who may see these studies."""
        return {MAY_SEE: " ".join(studies) or "none"}

    def fill(self) -> None:
        """Store what there is."""
        self.visible, self.hidden, self.other = (instances.with_bulk(PatientID=self.patient_id) for _ in range(3))
        self.everybody.store(*(instances.encoded(one) for one in (self.visible, self.hidden, self.other)))
        self.restricted.http.headers.update(self.client(self.visible.StudyInstanceUID))
        worklist = Worklist(self.everybody)
        visible, hidden = str(self.visible.StudyInstanceUID), str(self.hidden.StudyInstanceUID)
        about = {"visible": (visible,), "hidden": (hidden,), "partly hidden": (visible, hidden), "about no study": ()}
        for name, studies in about.items():
            self.workitems[name], response = worklist.create(referring(*studies, x00741202={"vr": "LO", "Value": [self.patient_id[-60:]]}))
            assert response.status_code == 201, response.text


@pytest.fixture(scope="module")
def world(suite: Suite) -> Iterator[World]:
    """One gateway for both callers, so that they share its caches.

    On one machine it maps the objects and speaks by Unix sockets; on the distributed set it speaks gRPC.
    """
    is_near = suite.settings["GANTRY_OBJECT_STORE"] == "directory"
    with another_gateway(suite, module="tests.support.gateway_of_callers", is_near=is_near) as gateway:
        made = World(gateway, gateway.client, DicomWeb(gateway.url, gateway.origin))
        made.fill()
        yield made
        made.restricted.http.close()


def path_of(world: World, route: Route, of: Dataset, workitem_uid: str = "", ae_title: str = "TESTER") -> str:
    """Return the path of a row for an instance, or for a workitem."""
    named = {
        "{study}": of.StudyInstanceUID,
        "{series}": of.SeriesInstanceUID,
        "{instance}": of.SOPInstanceUID,
        "{frames}": "1",
        "{bulkdata:path}": "7FE00010",
        "{workitem}": workitem_uid,
        "{aetitle}": ae_title,
    }
    path = route.path
    for name, given in named.items():
        path = path.replace(name, str(given))
    assert "{" not in path, f"{route.path} has a variable that this test does not know"
    return path


def plain(response: httpx.Response, *uids: str) -> tuple[int, str, dict[str, str]]:
    """Return what a caller can tell from an answer, but for the UIDs that it asked for itself."""
    text = response.text
    for number, uid in enumerate(uids):
        text = text.replace(str(uid), f"UID{number}")
    text = re.sub(r"\b\d{8}\.\d{6}\b", "TIME", text)
    left_out = ("date", "x-request-id", "content-length")
    return response.status_code, text, {name: told for name, told in response.headers.items() if name not in left_out}


def uids_of(data_set: Dataset) -> tuple[str, str, str]:
    return str(data_set.StudyInstanceUID), str(data_set.SeriesInstanceUID), str(data_set.SOPInstanceUID)


def is_as_nothing(world: World, route: Route, hidden: Dataset, **options: Any) -> None:
    """Check that a request for something hidden is answered as the same one for what never was."""
    nothing = instances.ct()
    answers = [world.restricted.request(route.method, path_of(world, route, of), **options) for of in (hidden, nothing)]
    assert answers[0].status_code == 404, answers[0].text
    assert plain(answers[0], *uids_of(hidden)) == plain(answers[1], *uids_of(nothing))


def retrieves(accept: str = "*/*", *others: str) -> Callable[[World, Route], None]:
    """Check a row of Retrieve, for one way to accept it and for others."""

    def check(world: World, route: Route) -> None:
        for wanted in (accept, *others):
            path = path_of(world, route, world.hidden)
            for _ in range(2):
                seen = world.everybody.get(path, wanted)
                assert seen.status_code == 200, seen.text
            etag = seen.headers.get("etag", "*")
            for headers in ({}, {"If-None-Match": etag}, {"If-None-Match": "*"}, {"Range": "bytes=0-3"}, {"If-Match": etag}):
                is_as_nothing(world, route, world.hidden, accept=wanted, headers=headers)
            assert world.restricted.request("HEAD", path, wanted).status_code == 404
            assert world.everybody.get(path, wanted, {"If-None-Match": etag}).status_code == 304 or etag == "*"
            own = path_of(world, route, world.visible)
            mine, all_see = world.restricted.get(own, wanted), world.everybody.get(own, wanted)
            assert (mine.status_code, len(mine.content)) == (200, len(all_see.content))
            assert world.restricted.get(own, wanted, world.client()).status_code == 404

    return check


def searches(world: World, route: Route) -> None:
    """Check a row of Search: rows, counts, and what the path of a hidden study gives."""
    is_below_a_study = "{study}" in route.path
    path = path_of(world, route, world.visible)
    for query in ("", "&includefield=all", "&limit=1", "&Modality=CT", "&limit=1&offset=0"):
        wanted = f"{path}?PatientID={world.patient_id}{query}"
        response = world.restricted.get(wanted, JSON)
        assert response.status_code == 200, response.text
        assert [value(row, STUDY) for row in response.json()] == [world.visible.StudyInstanceUID]
        assert "additional results" not in response.headers.get("warning", "")
    everything = world.everybody.get(f"{path}?PatientID={world.patient_id}", JSON).json()
    assert len(everything) == (1 if is_below_a_study else 3)
    assert world.restricted.search(f"{path}?PatientID={world.patient_id}&offset=1") == []
    for query in (f"StudyInstanceUID={world.hidden.StudyInstanceUID}", f"SeriesInstanceUID={world.hidden.SeriesInstanceUID}", "limit=1000"):
        studies = {value(row, STUDY) for row in world.restricted.search(f"{path}?{query}")}
        assert studies <= {world.visible.StudyInstanceUID}
    assert world.restricted.get(f"{path}?PatientID={world.patient_id}", XML).text.count("<NativeDicomModel") == 1
    if is_below_a_study:
        assert world.restricted.get(path_of(world, route, world.hidden), JSON).status_code == 204
        assert world.restricted.get(path_of(world, route, instances.ct()), JSON).status_code == 204


def failures(response: httpx.Response) -> list[int]:
    assert response.status_code == 409, response.text
    return [value(item, FAILURE_REASON) for item in response.json()[FAILED_SOP_SEQUENCE]["Value"]]


def stores(world: World, route: Route) -> None:
    """Check that a store into a hidden study, and into one that is not there, are refused with the same answer."""
    new = instances.ct()
    of_hidden = instances.ct(StudyInstanceUID=world.hidden.StudyInstanceUID)
    again = world.hidden
    answers = [world.restricted.stow(instances.encoded(one)) for one in (new, of_hidden, again)]
    assert [failures(answer) for answer in answers] == [[NOT_AUTHORIZED]] * 3
    expected = plain(answers[0], *uids_of(new), new.SOPClassUID)
    assert plain(answers[1], *uids_of(of_hidden), of_hidden.SOPClassUID) == expected
    assert plain(answers[2], *uids_of(again), again.SOPClassUID) == expected
    assert world.everybody.get(instances.resource(new)).status_code == 404
    assert world.everybody.get(instances.resource(of_hidden)).status_code == 404
    mine = instances.ct(StudyInstanceUID=world.visible.StudyInstanceUID, PatientID="another")
    both = world.restricted.stow(instances.encoded(mine), instances.encoded(of_hidden))
    assert both.status_code == 202
    assert value(both.json()[FAILED_SOP_SEQUENCE]["Value"][0], FAILURE_REASON) == NOT_AUTHORIZED
    assert world.restricted.get(instances.resource(mine)).status_code == 200
    # A SOP Instance UID can be taken once only; by whom is not told.
    taken = instances.ct(StudyInstanceUID=world.visible.StudyInstanceUID, SOPInstanceUID=world.hidden.SOPInstanceUID)
    assert failures(world.restricted.stow(instances.encoded(taken))) == [NOT_AUTHORIZED]
    assert failures(world.everybody.stow(instances.encoded(taken))) == [DUPLICATE]
    assert world.everybody.get(instances.resource(world.hidden)).status_code == 200
    assert world.everybody.request("DELETE", instances.series_resource(mine)).status_code == 204


def stores_into_a_study(world: World, route: Route) -> None:
    """Check POST /studies/{study}: a hidden study is 404, as one that the caller may not make."""
    answers = []
    for rows in (32, 1200):
        nothing, of_hidden = instances.ct(rows), instances.ct(rows, StudyInstanceUID=world.hidden.StudyInstanceUID)
        for one in (nothing, of_hidden):
            response = world.restricted.stow(instances.encoded(one), study=str(one.StudyInstanceUID))
            assert response.status_code == 404, response.text
            answers.append(plain(response, *uids_of(one)))
    assert len({repr(answer) for answer in answers}) == 1
    mine = instances.ct(StudyInstanceUID=world.visible.StudyInstanceUID, PatientID="another")
    assert world.restricted.stow(instances.encoded(mine), study=str(mine.StudyInstanceUID)).status_code == 200
    assert world.everybody.request("DELETE", instances.series_resource(mine)).status_code == 204


def deletes(world: World, route: Route) -> None:
    """Check that nothing hidden is deleted, and that what was deleted is 404 and not 410 where it was hidden."""
    is_as_nothing(world, route, world.hidden)
    assert world.everybody.get(instances.resource(world.hidden)).status_code == 200
    mine, deleted = instances.ct(), instances.ct()
    world.everybody.store(instances.encoded(mine), instances.encoded(deleted))
    headers = world.client(str(mine.StudyInstanceUID))
    assert world.restricted.request("DELETE", path_of(world, route, mine), headers=headers).status_code == 204
    assert world.restricted.get(instances.resource(mine), headers=headers).status_code == 410
    assert world.everybody.request("DELETE", path_of(world, route, deleted)).status_code == 204
    assert world.everybody.get(instances.resource(deleted)).status_code == 410
    is_as_nothing(world, route, deleted)
    for path in (instances.study_resource, instances.series_resource, instances.resource):
        nothing = instances.ct()
        answers = [world.restricted.get(path(one)) for one in (deleted, nothing)]
        assert plain(answers[0], *uids_of(deleted)) == plain(answers[1], *uids_of(nothing))
        assert answers[0].status_code == 404


def creates_a_workitem(world: World, route: Route) -> None:
    worklist, visible = Worklist(world.restricted), str(world.visible.StudyInstanceUID)
    uid, response = worklist.create(referring(visible))
    assert response.status_code == 201
    assert world.restricted.get(f"/workitems/{uid}", JSON).status_code == 200
    answers = [worklist.create(referring(*studies)) for studies in ((str(world.hidden.StudyInstanceUID),), (instances.new_uid(),), ())]
    assert {answer.status_code for _, answer in answers} == {400}
    assert len({answer.text for _, answer in answers}) == 1
    for uid, _ in answers:
        assert world.everybody.get(f"/workitems/{uid}", JSON).status_code == 404
    assert worklist.create(referring(visible, str(world.hidden.StudyInstanceUID)))[1].status_code == 400
    # A UID can be taken once only; of what took it nothing is told, nor is it changed.
    before = Worklist(world.everybody).get(world.workitems["hidden"])
    assert worklist.create(referring(visible), world.workitems["hidden"])[1].status_code == 409
    assert Worklist(world.everybody).get(world.workitems["hidden"]) == before


def searches_workitems(world: World, route: Route) -> None:
    query = f"WorklistLabel={world.patient_id[-60:]}"
    assert Worklist(world.restricted).found(query) == [world.workitems["visible"]]
    response = world.restricted.get(f"/workitems?{query}&limit=1", JSON, {"Cache-Control": "no-cache"})
    assert "additional results" not in response.headers.get("warning", "")
    assert sorted(Worklist(world.everybody).found(query)) == sorted(world.workitems.values())
    assert Worklist(world.restricted).found(f"{query}&StudyInstanceUID={world.hidden.StudyInstanceUID}") == []


def hides_workitems(body: Any = None, expected: int = 200) -> Callable[[World, Route], None]:
    """Check a row about one workitem: what is hidden is as what never was; a visible one can be used."""

    def check(world: World, route: Route) -> None:
        options: dict[str, Any] = {"accept": JSON}
        if body is not None:
            options |= {"headers": {"Content-Type": JSON}, "content": json.dumps([body])}
        nothing, ae_title = instances.new_uid(), new_ae_title()
        never = world.restricted.request(route.method, path_of(world, route, world.hidden, nothing, ae_title), **options)
        assert never.status_code == 404, never.text
        states = [Worklist(world.everybody).get(uid) for uid in world.workitems.values()]
        for name in ("hidden", "partly hidden", "about no study"):
            uid = world.workitems[name]
            response = world.restricted.request(route.method, path_of(world, route, world.hidden, uid, ae_title), **options)
            assert plain(response, uid) == plain(never, nothing), name
        assert [Worklist(world.everybody).get(uid) for uid in world.workitems.values()] == states
        uid, created = Worklist(world.everybody).create(referring(str(world.visible.StudyInstanceUID)))
        assert created.status_code == 201
        if route.transaction == "Unsubscribe":
            assert Worklist(world.restricted).subscribe(uid, ae_title).status_code == 201
        response = world.restricted.request(route.method, path_of(world, route, world.visible, uid, ae_title), **options)
        assert response.status_code == expected, response.text

    return check


def updates_a_workitem(world: World, route: Route) -> None:
    hides_workitems({"00741204": {"vr": "LO", "Value": ["Changed"]}})(world, route)
    worklist, mine = Worklist(world.restricted), world.workitems["visible"]
    before = worklist.get(mine)
    hidden = {"0020000D": {"vr": "UI", "Value": [str(world.hidden.StudyInstanceUID)]}}
    assert worklist.update(mine, hidden).status_code == 400
    assert worklist.get(mine) == before


def uses_the_worklist(expected: int) -> Callable[[World, Route], None]:
    """Check a row about a subscription to the whole worklist, which is about no study: it is for every caller."""

    def check(world: World, route: Route) -> None:
        ae_title = new_ae_title()
        uid = FILTERED_SUBSCRIPTION if FILTERED_SUBSCRIPTION in route.path else GLOBAL_SUBSCRIPTION
        query = "?WorklistLabel=none" if uid == FILTERED_SUBSCRIPTION else ""
        if route.method == "DELETE" or route.path.endswith("suspend"):
            assert Worklist(world.restricted).subscribe(uid, ae_title, query).status_code == 201
        path = path_of(world, route, world.hidden, uid, ae_title)
        assert world.restricted.request(route.method, path + query).status_code == expected

    return check


def suspends(world: World, route: Route) -> None:
    uses_the_worklist(200)(world, route)
    for uid in (world.workitems["hidden"], instances.new_uid()):
        assert world.restricted.request(route.method, path_of(world, route, world.hidden, uid)).status_code == 400


def reports(world: World, route: Route) -> None:
    """Check that a connection hears of visible workitems only, live and when it catches up."""
    path = {"/": "/?requester={}"}.get(route.path, route.path.replace("{aetitle}", "{}"))
    visible, hidden = str(world.visible.StudyInstanceUID), str(world.hidden.StudyInstanceUID)
    worklist, ae_title = Worklist(world.everybody), new_ae_title()
    assert worklist.subscribe(GLOBAL_SUBSCRIPTION, ae_title).status_code == 201

    def change() -> tuple[str, str]:
        made = [worklist.create(referring(*studies)) for studies in ((hidden,), (visible, hidden), (), (visible,))]
        assert [response.status_code for _, response in made] == [201] * 4
        return made[0][0], made[-1][0]

    caught_up = change()
    with (
        listening(world.everybody, ae_title, path) as all_hear,
        listening(world.restricted, ae_title, path, world.client(visible)) as mine,
    ):
        # Both begin where the AE title stood, and then are live.
        all_hear.next_of(caught_up[0])
        live = change()
        all_hear.next_of(live[0])
        for uid in (caught_up[1], live[1]):
            while (heard := mine.next())["00001002"]["Value"] == [4]:
                pass
            assert heard["00001000"]["Value"] == [uid]


def answers_everybody(expected: int) -> Callable[[World, Route], None]:
    """Check a row that is about nothing stored."""

    def check(world: World, route: Route) -> None:
        for client in (world.everybody, world.restricted):
            path = path_of(world, route, world.hidden)
            mount = next(mount for mount in MOUNTS if route in mount.routes)
            url = path if mount.name == "DICOMweb" else f"{world.gateway.origin}{mount.path}{path}"
            assert client.request(route.method, url).status_code == expected

    return check


CHECKS: dict[str, Callable[[World, Route], None]] = {
    **dict.fromkeys(
        ("SearchStudies", "SearchSeries", "SearchInstances", "SearchStudyInstances", "SearchAllSeries", "SearchAllInstances"), searches
    ),
    "StoreInstances": stores,
    "StoreStudyInstances": stores_into_a_study,
    **dict.fromkeys(("RetrieveStudy", "RetrieveSeries"), retrieves("*/*", "application/zip")),
    "RetrieveInstance": retrieves("*/*", "application/dicom"),
    **dict.fromkeys(("RetrieveStudyMetadata", "RetrieveSeriesMetadata", "RetrieveInstanceMetadata"), retrieves(JSON)),
    "RetrieveFrames": retrieves("*/*", JPEG_LS),
    **dict.fromkeys(("RetrieveBulkdata", "RetrieveStudyBulkdata", "RetrieveSeriesBulkdata", "RetrieveInstanceBulkdata"), retrieves()),
    **dict.fromkeys(("RetrieveStudyPixelData", "RetrieveSeriesPixelData", "RetrieveInstancePixelData"), retrieves()),
    "RetrieveRenderedInstance": retrieves("image/jpeg", "image/png"),
    "RetrieveRenderedFrames": retrieves("image/jpeg", "image/png"),
    **dict.fromkeys(("DeleteStudy", "DeleteSeries", "DeleteInstance"), deletes),
    "CreateWorkitem": creates_a_workitem,
    "SearchWorkitems": searches_workitems,
    "RetrieveWorkitem": hides_workitems(),
    "UpdateWorkitem": updates_a_workitem,
    "ChangeWorkitemState": hides_workitems(
        {"00741000": {"vr": "CS", "Value": ["IN PROGRESS"]}, "00081195": {"vr": "UI", "Value": ["2.25.1"]}}
    ),
    "RequestWorkitemCancellation": hides_workitems({}, 202),
    "Subscribe": hides_workitems(expected=201),
    "Unsubscribe": hides_workitems(),
    "SubscribeFilteredWorklist": uses_the_worklist(201),
    "UnsubscribeFilteredWorklist": uses_the_worklist(200),
    "SuspendFilteredWorklist": uses_the_worklist(200),
    "SuspendGlobalSubscription": suspends,
    **dict.fromkeys(("OpenNotificationConnection", "OpenNotificationConnectionBelowWs", "OpenNotificationConnectionAtBase"), reports),
    **dict.fromkeys(("NotUpgraded", "NotUpgradedBelowWs"), answers_everybody(400)),
    "health": answers_everybody(200),
}


@pytest.mark.parametrize(("mount", "route"), ROWS, ids=[f"{route.method} {mount}{route.path}" for mount, route in ROWS])
def test_a_caller_who_may_see_one_study_of_three(world: World, mount: str, route: Route) -> None:
    if route.handler:
        assert route.transaction in CHECKS, f"{route.transaction} is offered: say here what a restricted caller gets of it"
        CHECKS[route.transaction](world, route)
        return
    path = re.sub(r"\{[a-z:]+\}", str(world.hidden.StudyInstanceUID), "/studies" if route.path == EVERY_RESOURCE else route.path)
    url = f"{world.gateway.origin}{mount}{path}"
    assert route.method != WEBSOCKET
    assert [client.request(route.method, url).status_code for client in (world.restricted, world.everybody)] == [501, 501]


def test_every_check_is_of_a_row() -> None:
    assert CHECKS.keys() == {route.transaction for _, route in ROWS if route.handler}


def test_what_a_caller_completes_is_its_own(world: World) -> None:
    worklist = Worklist(world.restricted)
    uid, _ = worklist.create(referring(str(world.visible.StudyInstanceUID)))
    transaction = instances.new_uid()
    assert worklist.change_state(uid, "IN PROGRESS", transaction).status_code == 200
    assert worklist.update(uid, performed(), transaction).status_code == 200
    assert worklist.change_state(uid, "COMPLETED", transaction).status_code == 200


def test_the_rest_of_a_study_is_restored_only_for_who_may_see_it(suite: Suite, world: World) -> None:
    ports = json.loads((suite.data / "run" / "ports.json").read_text())
    deleted, present = instances.ct(), world.hidden
    world.everybody.store(instances.encoded(deleted))
    assert world.everybody.request("DELETE", instances.study_resource(deleted)).status_code == 204

    async def restore(uid: str, *visible: str) -> tuple[int, int]:
        caller = Caller(visible_studies=frozenset(visible)) if visible else ANONYMOUS
        async with channels.channel(f"127.0.0.1:{ports['index']}") as channel:
            with call_context.entered(CallContext("restore", caller=caller)), rpc_errors.translated("index"):
                answer = await IndexServiceStub(channel).RestoreInstances(index_pb2.RestoreInstancesRequest(uid=uid), timeout=20)
                return answer.restored, answer.here

    for of in (deleted, present):
        for uid in uids_of(of):
            with pytest.raises(errors.NotFound, match="nothing is known of"):
                asyncio.run(restore(uid, "1.2.3"))
    assert world.everybody.get(instances.resource(deleted)).status_code == 410
    assert asyncio.run(restore(str(deleted.SOPInstanceUID), str(deleted.StudyInstanceUID))) == (1, 0)
    assert asyncio.run(restore(str(present.SOPInstanceUID))) == (0, 1)
    assert world.everybody.get(instances.resource(deleted)).status_code == 200
