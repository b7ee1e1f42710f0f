"""Copies of workitems in the object store: failing copies, the lag of the copies, the largest state."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from gantry.events.v1.events_pb2 import MessageCopy, WorkitemState
from gantry.workflow.v1 import workflow_pb2 as pb
from gantry_runtime.events import streams
from gantry_runtime.store_messages import PUT_BYTES
from gantry_standard.workitems import SCHEDULED
from gantry_workflow.workitems import transactions
from tests.support.nats_server import until
from tests.support.worklist import PERFORMED, Http, Worklist, code, own_nats, state, uid, v, workitem, worklist


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Worklist]:
    with own_nats(tmp_path) as nats:
        async with worklist(nats) as made:
            yield made


def copied_state(suite: Worklist, item: str) -> WorkitemState | None:
    """Return the state in the copy of a workitem."""
    data = suite.blob.objects.get(f"workitems/{item}")
    return None if data is None else WorkitemState.FromString(MessageCopy.FromString(data).data)


def with_text(text: str) -> dict[str, Any]:
    """Return an item of a code sequence with an additional long text."""
    return {**code("C1", "Class"), "0040A160": v("UT", text)}


def copies(outcome: str) -> float:
    return REGISTRY.get_sample_value("gantry_workitem_copies_total", {"outcome": outcome}) or 0.0


async def create(workflow: Any, item: str) -> None:
    request = pb.CreateWorkitemRequest(workitem_uid=item, dicom_json=json.dumps(workitem()).encode())
    await workflow.CreateWorkitem(request, timeout=10)


async def status(workflow: Any) -> Any:
    return await workflow.GetStatus(pb.GetStatusRequest(), timeout=10)


async def test_a_workitem_that_cannot_be_copied_now_does_not_stop_the_others_and_shows_as_lag(suite: Worklist) -> None:
    first, failing, last = uid(), uid(), uid()
    suite.blob.failing.add(f"workitems/{failing}")
    async with suite.workflow(workitem_copy_lag_s=0.0) as workflow:
        for item in (first, failing, last):
            await create(workflow, item)
        await until(lambda: copied_state(suite, first) and copied_state(suite, last))
        await until(lambda: REGISTRY.get_sample_value("gantry_workitem_copy_lag_messages") == 2)
        assert (REGISTRY.get_sample_value("gantry_workitem_copy_lag_seconds") or 0) > 0
        told = await status(workflow)
        assert not told.ready
        assert "behind (2 changes)" in told.explanation
        suite.blob.failing.clear()

        async def is_ready() -> bool:
            return bool((await status(workflow)).ready)

        await until(is_ready)
        assert copied_state(suite, failing) is not None
        await until(lambda: REGISTRY.get_sample_value("gantry_workitem_copy_lag_messages") == 0)
        assert REGISTRY.get_sample_value("gantry_workitem_copy_lag_seconds") == 0


async def test_what_could_not_be_copied_is_copied_after_a_restart(suite: Worklist) -> None:
    failing, last = uid(), uid()
    suite.blob.failing.add(f"workitems/{failing}")
    async with suite.workflow() as workflow:
        await create(workflow, failing)
        await create(workflow, last)
        await until(lambda: copied_state(suite, last))
    suite.blob.failing.clear()
    async with suite.workflow():
        await until(lambda: copied_state(suite, failing))


async def test_while_blob_takes_no_copies_at_all_they_wait_and_are_all_written_afterwards(suite: Worklist) -> None:
    items = [uid() for _ in range(150)]
    suite.blob.failing.update(f"workitems/{item}" for item in items)
    async with suite.workflow() as workflow:
        for item in items:
            await create(workflow, item)
        before = copies("failed")
        await until(lambda: copies("failed") > before)
        suite.blob.failing.clear()
        await until(lambda: set(suite.blob.objects) == {f"workitems/{item}" for item in items}, 20)


async def test_a_state_that_was_too_large_already_is_passed_and_counted(suite: Worklist) -> None:
    large, other = uid(), uid()
    async with suite.workflow(workitem_copy_lag_s=0.0) as workflow:
        refused = copies("refused")
        async with streams.connected(suite.nats.url, "test") as client:
            too_large = WorkitemState(workitem_uid=large, procedure_step_state=SCHEDULED, dicom_json=bytes(PUT_BYTES + 1))
            await streams.publish(client.jetstream(), f"workitem.{large}", too_large.SerializeToString())
        await create(workflow, other)
        await until(lambda: copied_state(suite, other))
        await until(lambda: copies("refused") == refused + 1)
        assert set(suite.blob.objects) == {f"workitems/{other}"}

        async def is_ready() -> bool:
            return bool((await status(workflow)).ready)

        await until(is_ready)


async def test_a_copy_goes_without_what_its_change_says_where_both_are_too_large(suite: Worklist) -> None:
    item = uid()
    half = "x" * (3 << 20)
    async with suite.workflow(), suite.gateway() as http:
        await http.create(item, t00404026=v("SQ", with_text(half)))
        changes = {"00404026": v("SQ", with_text(half.replace("x", "y")))}
        answer = await http.send("POST", f"/workitems/{item}", changes)
        assert answer.status_code == 200, answer.text

        def is_latest() -> bool:
            copied = copied_state(suite, item)
            return copied is not None and b"yyy" in copied.dicom_json

        await until(is_latest)


LARGEST = transactions.MAX_DATASET_BYTES - 8_192
"""Characters that fit into the largest data set together with the elements of the template."""


async def refused_as_too_large(http: Http, method: str, path: str, dataset: Any) -> None:
    answer = await http.send(method, path, dataset)
    assert answer.status_code == 413, answer.text
    assert "expected at most" in answer.text


async def test_a_state_that_would_be_too_large_is_413_and_the_workitem_stays_as_it_was(suite: Worklist) -> None:
    async with suite.workflow(), suite.gateway() as http:
        await refused_as_too_large(http, "POST", f"/workitems?{uid()}", workitem(t0040A160=v("UT", "x" * transactions.MAX_DATASET_BYTES)))
        item = await http.create(t0040A160=v("UT", "x" * LARGEST))
        before = (await http.send("GET", f"/workitems/{item}")).json()
        await refused_as_too_large(http, "POST", f"/workitems/{item}", {"0040A730": v("SQ", with_text("y" * 20_000))})
        reason = {"0074100E": v("SQ", with_text("y" * 20_000))}
        await refused_as_too_large(http, "POST", f"/workitems/{item}/cancelrequest", reason)
        assert (await http.send("GET", f"/workitems/{item}")).json() == before


async def test_the_largest_workitem_can_be_subscribed_to_claimed_completed_and_is_copied(suite: Worklist) -> None:
    async with suite.workflow(), suite.gateway() as http:
        item = await http.create(t0040A160=v("UT", "x" * (LARGEST - 4096)))
        await http.subscribe(item, "AE1")
        transaction = await http.claim(item)
        answer = await http.send("POST", f"/workitems/{item}?{transaction}", PERFORMED)
        assert answer.status_code == 200, answer.text
        answer = await http.send("PUT", f"/workitems/{item}/state", state("COMPLETED", transaction))
        assert answer.status_code == 200, answer.text

        def is_latest() -> bool:
            copied = copied_state(suite, item)
            return copied is not None and copied.procedure_step_state == "COMPLETED"

        await until(is_latest)


async def test_what_nats_does_not_take_is_413(tmp_path: Path) -> None:
    with own_nats(tmp_path, max_payload="1MB") as nats:
        async with worklist(nats) as suite, suite.workflow(), suite.gateway() as http:
            await refused_as_too_large_for_nats(http, workitem(t0040A160=v("UT", "x" * (1 << 20))))
            await http.create(t0040A160=v("UT", "x" * (1 << 19)))


async def refused_as_too_large_for_nats(http: Http, dataset: Any) -> None:
    answer = await http.send("POST", f"/workitems?{uid()}", dataset)
    assert answer.status_code == 413, answer.text
    assert "NATS accepts at most 1048576" in answer.text


def test_the_largest_data_set_has_room_for_all_subscriptions_and_what_a_final_state_adds() -> None:
    item = "1." + "2" * 62
    largest = WorkitemState(workitem_uid=item, dicom_json=bytes(transactions.MAX_DATASET_BYTES), procedure_step_state=SCHEDULED)
    largest.transaction_uid, largest.change_id, largest.created_sequence = "3" * 64, "4" * 32, 2**63
    for number in range(transactions.MAX_ITEM_SUBSCRIPTIONS):
        largest.subscriptions.add(ae_title=f"{number:016}", deletion_lock=True, sequence=2**63)
    largest.dicom_json += bytes(4096)
    transactions.check_size(largest)
    copied = MessageCopy(subject=f"workitem.{item}", sequence=2**63, data=largest.SerializeToString())
    assert copied.ByteSize() <= PUT_BYTES
