"""Workitems on a real stream: races, crashes, reports, copies."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gantry.events.v1.events_pb2 import EventReport
from gantry.workflow.v1 import workflow_pb2 as pb
from gantry_runtime.events import streams
from gantry_runtime.events.streams import REPORTS, WORKITEMS
from gantry_runtime.process import end_tasks
from gantry_runtime.rpc.rpc_errors import translated
from gantry_standard import errors
from gantry_workflow.settings import WorkflowSettings
from gantry_workflow.streams import history, leader
from gantry_workflow.streams.report_writer import ReportWriter
from gantry_workflow.streams.workitems import Workitems
from gantry_workflow.workitems import subscriptions, transactions
from tests.support.nats_server import NatsServer, until
from tests.support.worklist import FILTERED, GLOBAL, Worklist, own_nats, state, uid, v, worklist
from tests.support.worklist import workitem as template


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Worklist]:
    with own_nats(tmp_path) as nats:
        async with worklist(nats) as made:
            yield made


def encode(dataset: Any) -> bytes:
    return json.dumps(dataset).encode()


async def create(workflow: Any, item: str = "") -> str:
    answer = await workflow.CreateWorkitem(pb.CreateWorkitemRequest(workitem_uid=item or uid(), dicom_json=encode(template())), timeout=10)
    return str(answer.workitem_uid)


async def change(workflow: Any, item: str, name: str, transaction: str) -> str:
    """Change the state; return the name of the error, "" if there is none."""
    request = pb.ChangeWorkitemStateRequest(workitem_uid=item, dicom_json=encode(state(name, transaction)))
    try:
        with translated("workflow"):
            await workflow.ChangeWorkitemState(request, timeout=20)
    except errors.GantryError as error:
        return type(error).__name__
    return ""


async def subscribe(workflow: Any, item: str, ae_title: str, lock: bool = False) -> None:
    await workflow.Subscribe(pb.SubscribeRequest(workitem_uid=item, ae_title=ae_title, deletion_lock=lock), timeout=10)


async def written(nats: NatsServer) -> list[EventReport]:
    """Return all reports about workitems, in order, and check that their sequences have no gap."""
    async with streams.connected(nats.url, "test") as client:
        js = client.jetstream()
        first, last = await streams.stream_state(js, REPORTS)
        found: list[EventReport] = []
        if last < first:
            return found
        async for batch in streams.read_from(js, REPORTS, 0):
            found += [EventReport.FromString(message.data) for message in batch]
            if batch and batch[-1].sequence >= last:
                break
        return [report for report in found if report.event_type_id != 4]


def states_of(reports: list[EventReport], item: str) -> list[str]:
    return [json.loads(r.dicom_json)["00741000"]["Value"][0] for r in reports if r.workitem_uid == item and r.event_type_id == 1]


@pytest.mark.thorough
async def test_of_two_thousand_claims_at_once_exactly_one_wins(suite: Worklist) -> None:
    async with suite.workflow() as workflow:
        item = await create(workflow)
        answers = await asyncio.gather(*(change(workflow, item, "IN PROGRESS", uid()) for _ in range(2000)))
        assert Counter(answers) == {"": 1, "BadRequest": 1999}


async def test_of_many_creations_at_once_exactly_one_wins(suite: Worklist) -> None:
    async with suite.workflow() as workflow:
        item = uid()

        async def attempt() -> str:
            try:
                with translated("workflow"):
                    await create(workflow, item)
            except errors.GantryError as error:
                return type(error).__name__
            return ""

        answers = await asyncio.gather(*(attempt() for _ in range(50)))
        assert sorted(answers) == [""] + ["Conflict"] * 49


async def test_updates_at_once_are_all_kept(suite: Worklist) -> None:
    async with suite.workflow() as workflow:
        item = await create(workflow)
        tags = [f"0074{number:04X}" for number in range(0x9001, 0x9015)]

        async def update(tag: str) -> None:
            request = pb.UpdateWorkitemRequest(workitem_uid=item, dicom_json=encode({tag: v("LO", tag)}))
            await workflow.UpdateWorkitem(request, timeout=10)

        await asyncio.gather(*(update(tag) for tag in tags))
        answer = await workflow.RetrieveWorkitem(pb.RetrieveWorkitemRequest(workitem_uid=item), timeout=10)
        assert set(tags) <= set(json.loads(answer.dicom_json))


async def test_what_another_process_wrote_counts_whatever_this_one_has_kept(suite: Worklist) -> None:
    other = Worklist(suite.nats, suite.blob, suite.index, suite.blob_address, suite.index_address, suite.workflow_port + 1)
    async with suite.workflow() as here, other.workflow() as there:
        item, transaction = await create(here), uid()
        assert await change(there, item, "IN PROGRESS", transaction) == ""
        # The cached state of this process is SCHEDULED. Whatever it would allow or refuse, the state on the stream decides
        assert await change(here, item, "IN PROGRESS", uid()) == "BadRequest"
        for number, workflow in enumerate((here, there, here, here, there)):
            request = pb.UpdateWorkitemRequest(
                workitem_uid=item, transaction_uid=transaction, dicom_json=encode({f"0074901{number}": v("LO", f"{number}")})
            )
            await workflow.UpdateWorkitem(request, timeout=10)
        assert await change(there, item, "CANCELED", transaction) == ""
        assert await change(here, item, "COMPLETED", transaction) == "Conflict"
        with pytest.raises(errors.BadRequest), translated("workflow"):
            await here.UpdateWorkitem(request, timeout=10)
        answer = await here.RetrieveWorkitem(pb.RetrieveWorkitemRequest(workitem_uid=item), timeout=10)
        found = json.loads(answer.dicom_json)
        assert found["00741000"]["Value"] == ["CANCELED"]
        assert [found[f"0074901{number}"]["Value"] for number in range(5)] == [[f"{number}"] for number in range(5)]


class LosesAnswers:
    """JetStream that loses the acknowledgement of the first publish."""

    def __init__(self, js: Any) -> None:
        self._js = js
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._js, name)

    async def publish(self, *arguments: Any, **options: Any) -> Any:
        answer = await self._js.publish(*arguments, **options)
        if not self.lost:
            self.lost += 1
            raise TimeoutError
        return answer


async def test_a_change_whose_acknowledgement_was_lost_is_found_and_not_made_twice(suite: Worklist) -> None:
    async with suite.workflow() as workflow:
        item = await create(workflow)
        async with streams.connected(suite.nats.url, "test") as client:
            js = LosesAnswers(client.jetstream())
            request = transactions.StateRequest("IN PROGRESS", "2.25.1")
            decision = await Workitems(js).change(item, lambda state, _: transactions.change_state(state, item, request), "state")  # type: ignore[arg-type]
            assert js.lost == 1
            assert decision.state is not None
            assert decision.state.procedure_step_state == "IN PROGRESS"
            first, last = await streams.stream_state(client.jetstream(), WORKITEMS)
            assert last - first == 1


class Delays:
    """JetStream that delays the first publish until the last state is read again, as if NATS had recovered in between."""

    def __init__(self, js: Any) -> None:
        self._js = js
        self._delayed: list[Any] = []
        self.was_delayed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._js, name)

    async def publish(self, *arguments: Any, **options: Any) -> Any:
        if self.was_delayed:
            return await self._js.publish(*arguments, **options)
        self.was_delayed = True
        self._delayed.append((arguments, options))
        raise TimeoutError

    async def get_last_msg(self, *arguments: Any, **options: Any) -> Any:
        while self._delayed:
            given, more = self._delayed.pop()
            await self._js.publish(*given, **more)
        return await self._js.get_last_msg(*arguments, **options)


@pytest.mark.parametrize("kind", ["create", "claim", "cancel"])
async def test_a_change_that_arrives_while_it_is_tried_again_is_not_taken_for_another_s(suite: Worklist, kind: str) -> None:
    async with suite.workflow() as workflow, streams.connected(suite.nats.url, "test") as client:
        item, js = uid(), Delays(client.jetstream())
        delayed = Workitems(js)  # type: ignore[arg-type]
        if kind == "create":
            decision = await delayed.change(
                item, lambda found, _: transactions.create(found, item, template(), False), "create", is_new=True
            )
            wanted = "SCHEDULED"
        else:
            await create(workflow, item)
            wanted = "IN PROGRESS"
            request = transactions.StateRequest(wanted, "2.25.1")
            if kind == "cancel":
                assert await change(workflow, item, wanted, "2.25.1") == ""
                wanted = "CANCELED"
                request = transactions.StateRequest(wanted, "2.25.1")
            decision = await delayed.change(item, lambda state, _: transactions.change_state(state, item, request), "state")
        assert js.was_delayed
        assert decision.state is not None
        assert decision.state.procedure_step_state == wanted
        assert not decision.warnings
        found, _ = await delayed.read(item)
        assert found is not None
        assert found.change_id == decision.state.change_id


async def test_nats_killed_in_the_middle_of_changes_loses_none_that_was_answered(suite: Worklist) -> None:
    async with suite.workflow() as workflow:
        await subscribe(workflow, GLOBAL, "AE1")
        items: list[str] = []
        claimed: list[str] = []

        async def work() -> None:
            for _ in range(30):
                item = uid()
                try:
                    await create(workflow, item)
                except Exception:
                    continue
                items.append(item)
                if await change(workflow, item, "IN PROGRESS", uid()) == "":
                    claimed.append(item)

        workers = [asyncio.create_task(work()) for _ in range(4)]
        await until(lambda: len(claimed) > 10)
        suite.nats.kill()
        await asyncio.sleep(0.1)
        suite.nats.start()
        await asyncio.gather(*workers)
        assert len(claimed) > 20
        for item in items:
            answer = await workflow.RetrieveWorkitem(pb.RetrieveWorkitemRequest(workitem_uid=item), timeout=10)
            if item in claimed:
                assert json.loads(answer.dicom_json)["00741000"]["Value"] == ["IN PROGRESS"]

        async def is_reported() -> bool:
            reports = await written(suite.nats)
            return all(states_of(reports, item)[:2] == ["SCHEDULED", "IN PROGRESS"] for item in claimed)

        await until(is_reported, 20)
        reports = await written(suite.nats)
        keys = [(report.source_sequence, report.ordinal) for report in reports]
        assert keys == sorted(set(keys))


async def test_a_report_writer_that_starts_again_at_any_point_neither_loses_nor_repeats(suite: Worklist) -> None:
    async with streams.connected(suite.nats.url, "test") as client:
        js = client.jetstream()
        await streams.ensure_stream(js, WORKITEMS)
        await streams.ensure_stream(js, REPORTS)
    async with suite.workflow() as workflow:
        items = [await create(workflow) for _ in range(15)]
        await subscribe(workflow, GLOBAL, "AE1", lock=True)
        request = pb.SubscribeRequest(workitem_uid=FILTERED, ae_title="AE2", filter="00741000=SCHEDULED")
        await workflow.Subscribe(request, timeout=10)
        for item in items:
            assert await change(workflow, item, "IN PROGRESS", uid()) == ""
        await until(lambda: _reported(workflow))
    expected = await written(suite.nats)
    assert [states_of(expected, item) for item in items] == [["SCHEDULED", "IN PROGRESS"]] * 15
    assert [list(report.ae_titles) for report in expected] == [["AE1"]] * 15 + [["AE1", "AE2"]] * 15
    async with streams.connected(suite.nats.url, "test") as client:
        js = client.jetstream()
        for stop_after in (1, 4, 14, 15, 16, 20):
            await js.delete_stream("REPORTS")
            await js.delete_key_value("workflow")
            await streams.ensure_stream(js, REPORTS)
            stopping = StopsAfter(js, stop_after)
            with pytest.raises(errors.Unavailable):
                await ReportWriter(stopping).write()  # type: ignore[arg-type]
            writer = asyncio.create_task(ReportWriter(js).write())

            async def is_complete() -> bool:
                return len(await written(suite.nats)) == len(expected)

            await until(is_complete)
            # The writer may be storing its cursor: a wait of nats-py can lose a cancellation (`end_tasks`)
            await end_tasks([writer])
            assert [r.dicom_json for r in await written(suite.nats)] == [r.dicom_json for r in expected]


class StopsAfter:
    """JetStream that fails after a number of publishes; the last one is stored but not acknowledged."""

    def __init__(self, js: Any, count: int) -> None:
        self._js = js
        self._count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._js, name)

    async def publish(self, *arguments: Any, **options: Any) -> Any:
        answer = await self._js.publish(*arguments, **options)
        self._count -= 1
        if self._count <= 0:
            raise TimeoutError
        return answer


async def _reported(workflow: Any) -> bool:
    status = await workflow.GetStatus(pb.GetStatusRequest(), timeout=5)
    return bool(status.ready and status.reported_sequence == status.workitems_sequence)


async def test_of_two_processes_one_writes_reports_and_the_other_takes_over(suite: Worklist, tmp_path: Path) -> None:
    other = Worklist(suite.nats, suite.blob, suite.index, suite.blob_address, suite.index_address, suite.workflow_port + 1)
    async with other.workflow() as standby:
        async with suite.workflow() as workflow:
            await subscribe(workflow, GLOBAL, "AE1")
            items = [await create(workflow) for _ in range(5)] + [await create(standby) for _ in range(5)]
        items += [await create(standby) for _ in range(5)]

        async def is_complete() -> bool:
            return len([r for r in await written(suite.nats) if r.event_type_id == 1]) >= 15

        await until(is_complete)
        reports = await written(suite.nats)
        assert [r.workitem_uid for r in reports if r.event_type_id == 1] == items


async def test_workitems_and_subscriptions_come_back_from_the_object_store(tmp_path: Path) -> None:
    with own_nats(tmp_path / "first") as nats:
        async with worklist(nats) as suite:
            async with suite.workflow() as workflow:
                await subscribe(workflow, GLOBAL, "AE1", lock=True)
                request = pb.SubscribeRequest(workitem_uid=FILTERED, ae_title="AE2", filter="00741000=IN%20PROGRESS")
                await workflow.Subscribe(request, timeout=10)
                items = [await create(workflow) for _ in range(5)]
                assert await change(workflow, items[1], "IN PROGRESS", "2.25.5") == ""
                await workflow.Unsubscribe(pb.UnsubscribeRequest(workitem_uid=items[2], ae_title="AE1"), timeout=10)

                async def is_copied() -> bool:
                    status = await workflow.GetStatus(pb.GetStatusRequest(), timeout=5)
                    async with streams.connected(nats.url, "test") as client:
                        bucket = await streams.open_bucket(client.jetstream(), "workflow")
                        return (await bucket.get("copied"))[0] == str(status.workitems_sequence).encode()

                await until(is_copied)
            assert len(suite.blob.objects) == 7
            with own_nats(tmp_path / "second") as empty:
                suite.nats = empty
                async with suite.workflow() as workflow:
                    answer = await workflow.RetrieveWorkitem(pb.RetrieveWorkitemRequest(workitem_uid=items[1]), timeout=10)
                    assert json.loads(answer.dicom_json)["00741000"]["Value"] == ["IN PROGRESS"]
                    assert answer.version > 1_000_000
                    assert await change(workflow, items[1], "CANCELED", "2.25.6") == "BadRequest"
                    assert await change(workflow, items[1], "CANCELED", "2.25.5") == ""
                    assert await change(workflow, items[2], "IN PROGRESS", "2.25.7") == ""
                    assert await change(workflow, items[3], "IN PROGRESS", "2.25.8") == ""

                    async def is_heard() -> bool:
                        return len(await written(empty)) == 3

                    await until(is_heard)
                    heard = [(report.workitem_uid, list(report.ae_titles)) for report in await written(empty)]
                    assert heard == [(items[1], ["AE1", "AE2"]), (items[2], ["AE2"]), (items[3], ["AE1", "AE2"])]


async def test_superseded_states_are_purged_and_last_ones_kept(suite: Worklist) -> None:
    async with suite.workflow() as workflow:
        items = [await create(workflow) for _ in range(3)]
        assert await change(workflow, items[0], "IN PROGRESS", uid()) == ""
        async with streams.connected(suite.nats.url, "test") as client:
            js = client.jetstream()
            _, last = await streams.stream_state(js, WORKITEMS)
            reports = ReportWriter(js)
            reports.reported = last
            purging = asyncio.create_task(history.purge_superseded(js, reports, 0.05))

            async def is_purged() -> bool:
                return (await js.stream_info("WORKITEMS")).state.messages == 3

            await until(is_purged)
            await end_tasks([purging])
        answer = await workflow.RetrieveWorkitem(pb.RetrieveWorkitemRequest(workitem_uid=items[0]), timeout=10)
        assert json.loads(answer.dicom_json)["00741000"]["Value"] == ["IN PROGRESS"]


async def test_a_final_workitem_becomes_a_tombstone_and_then_nothing_its_copy_too(suite: Worklist) -> None:
    async with suite.workflow(workitem_keep_s=0.2, workitem_tombstone_s=1.0) as workflow:
        kept, going = await create(workflow), await create(workflow)
        await subscribe(workflow, kept, "AE1", lock=True)
        for item in (kept, going):
            assert await change(workflow, item, "IN PROGRESS", f"{item}.1") == ""
            assert await change(workflow, item, "CANCELED", f"{item}.1") == ""

        async def answer(item: str) -> str:
            try:
                with translated("workflow"):
                    await workflow.RetrieveWorkitem(pb.RetrieveWorkitemRequest(workitem_uid=item), timeout=10)
            except errors.GantryError as error:
                return type(error).__name__
            return ""

        seen = [await answer(going)]

        async def is_forgotten() -> bool:
            if seen[-1] != (now := await answer(going)):
                seen.append(now)
            return now == "NotFound"

        await until(is_forgotten, 30)
        assert seen[-2:] == ["Gone", "NotFound"]
        await until(lambda: set(suite.blob.objects) == {f"workitems/{kept}"})
        assert await answer(kept) == ""
        assert await create(workflow, going) == going


async def test_a_lock_by_filter_is_released_when_its_subscription_ends(suite: Worklist) -> None:
    async with suite.workflow(workitem_keep_s=0.2) as workflow:
        call = {"workitem_uid": FILTERED, "ae_title": "AE1", "filter": "00741202=AI"}
        await workflow.Subscribe(pb.SubscribeRequest(**call, deletion_lock=True), timeout=10)
        items = [await create(workflow) for _ in range(3)]
        for item in items:
            assert await change(workflow, item, "IN PROGRESS", "2.25.1") == ""
            assert await change(workflow, item, "CANCELED", "2.25.1") == ""
        async with streams.connected(suite.nats.url, "test") as client:
            bucket = await streams.open_bucket(client.jetstream(), "workflow")
            _, last = await streams.stream_state(client.jetstream(), WORKITEMS)

            async def has_passed() -> bool:
                return int((await bucket.get("deleted"))[0] or b"0") >= last

            await until(has_passed)
            assert (await Workitems(client.jetstream()).read(items[0]))[0].deleted is False  # type: ignore[union-attr]
            await workflow.Unsubscribe(pb.UnsubscribeRequest(workitem_uid=FILTERED, ae_title="AE1"), timeout=10)

            async def are_deleted() -> bool:
                return all([(await Workitems(client.jetstream()).read(item))[0].deleted for item in items])  # type: ignore[union-attr]

            await until(are_deleted)


async def test_the_first_start_is_cold_and_every_other_warm(suite: Worklist) -> None:
    kinds = []
    for _ in range(2):
        async with suite.workflow() as workflow:
            await create(workflow)
            await until(lambda: _reported(workflow))
        async with streams.connected(suite.nats.url, "test") as client:
            report = EventReport.FromString((await streams.last_message(client.jetstream(), REPORTS, f"report.{GLOBAL}")).data)
            kinds.append(json.loads(report.dicom_json)["00741246"]["Value"][0])
    assert kinds == ["COLD START", "WARM START"]


async def test_filters_of_one_subscriber_and_of_all_are_bounded(suite: Worklist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MAX_FILTERS_OF_ONE", 2)
    monkeypatch.setattr(subscriptions, "MAX_FILTERS", 3)

    async def add(workflow: Any, ae_title: str, label: str) -> str:
        request = pb.SubscribeRequest(workitem_uid=FILTERED, ae_title=ae_title, filter=f"00741202={label}")
        try:
            with translated("workflow"):
                await workflow.Subscribe(request, timeout=10)
        except errors.GantryError as error:
            return type(error).__name__
        return ""

    async with suite.workflow() as workflow:
        asked = [("AE1", "A"), ("AE1", "B"), ("AE1", "C"), ("AE1", "A"), ("AE2", "A"), ("AE3", "A")]
        assert [await add(workflow, *pair) for pair in asked] == ["", "", "Forbidden", "", "", "Forbidden"]
        assert await add(workflow, "AE1", "x" * 5000) == "BadRequest"
        await workflow.Unsubscribe(pb.UnsubscribeRequest(workitem_uid=FILTERED, ae_title="AE1"), timeout=10)
        assert await add(workflow, "AE3", "A") == ""


async def test_a_task_of_the_leader_that_dies_ends_the_leader(suite: Worklist) -> None:
    class Dying:
        async def run(self) -> None:
            raise asyncio.CancelledError

    async with streams.connected(suite.nats.url, "test") as client:
        js = client.jetstream()
        for stream in (WORKITEMS, REPORTS):
            await streams.ensure_stream(js, stream)
        leading = leader.lead(js, suite.blob, ReportWriter(js), Dying(), WorkflowSettings())  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="task copy was cancelled"):
            await asyncio.wait_for(leading, 20)


async def test_strict_creation_is_a_setting(suite: Worklist) -> None:
    async with suite.workflow(workitem_create="strict") as workflow:
        request = pb.CreateWorkitemRequest(workitem_uid=uid(), dicom_json=encode(template(t00380010=None)))
        with pytest.raises(errors.BadRequest, match="0038,0010"), translated("workflow"):
            await workflow.CreateWorkitem(request, timeout=10)


async def test_workflow_starts_while_nats_is_away(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path)
    async with worklist(nats) as suite:

        async def run() -> str:
            async with suite.workflow() as workflow:
                return await create(workflow)

        running = asyncio.create_task(run())
        await asyncio.sleep(0.3)
        assert not running.done()
        nats.start()
        try:
            assert await asyncio.wait_for(running, 10)
        finally:
            nats.kill()
