"""The worklist client of the suite's library (docs/worklist-client.md), `gantry worklist` and `gantry watch`, against the running suite."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from gantry_standard import errors
from gantry_standard.workitems import FILTERED_SUBSCRIPTION
from gantry_suite import main
from gantry_suite.worklist_client import (
    Event,
    EventType,
    WorklistClient,
    code,
    element,
    items,
    new_uid,
    now,
    performed_procedure,
    references,
    value,
)
from tests.support import instances
from tests.support.documents import code_blocks
from tests.support.suite import Suite
from tests.support.workitems import Worklist, new_ae_title, workitem

STATION, PROCEDURE = code("ST1", "99TEST", "Station"), code("P1", "99TEST", "Procedure")


def run(story: Coroutine[Any, Any, None], within_s: float = 60) -> None:
    """Run what a program does with the client."""
    asyncio.run(asyncio.wait_for(story, within_s))


def scheduled(label: str = "Segment liver") -> dict[str, Any]:
    """Return a data set that may be created, made with the client's own words."""
    return (
        element("ProcedureStepLabel", label)
        | element("WorklistLabel", "AI")
        | element("ScheduledProcedureStepPriority", "HIGH")
        | element("ScheduledProcedureStepStartDateTime", now())
        | element("ScheduledWorkitemCodeSequence", PROCEDURE)
        | element("ScheduledStationNameCodeSequence", STATION)
        | element("InputReadinessState", "READY")
        | element("ProcedureStepState", "SCHEDULED")
    )


def test_a_workitem_is_created_found_claimed_worked_on_and_completed(suite: Suite) -> None:
    async def story() -> None:
        async with WorklistClient(suite.url) as worklist:
            uid = await worklist.create(scheduled())
            (row,) = await worklist.search({"SOPInstanceUID": uid, "ProcedureStepState": "SCHEDULED"}, limit=5)
            assert value(row, "ProcedureStepLabel") == "Segment liver"
            await worklist.update(uid, element("ProcedureStepLabel", "Segment both lungs"))
            transaction_uid = await worklist.claim(uid)
            await worklist.report_progress(uid, transaction_uid, 42.5, "half way", contact_uri="https://host/7")
            found = await worklist.get(uid)
            assert value(found, "ProcedureStepState") == "IN PROGRESS"
            assert value(found, "ProcedureStepLabel") == "Segment both lungs"
            (progress,) = items(found, "ProcedureStepProgressInformationSequence")
            assert float(value(progress, "ProcedureStepProgress")) == 42.5
            assert value(progress, "ProcedureStepProgressDescription") == "half way"
            data_set = instances.ct(8, 8)
            output = {tag: {"vr": "UI", "Value": [str(data_set[tag].value)]} for tag in ("00080016", "00080018", "0020000D", "0020000E")}
            with pytest.raises(errors.Conflict, match="Performed Procedure"):
                await worklist.complete(uid, transaction_uid)
            performed = performed_procedure(found, outputs=references([output], suite.url))
            await worklist.complete(uid, transaction_uid, performed)
            await worklist.complete(uid, transaction_uid, performed)
            found = await worklist.get(uid)
            assert value(found, "ProcedureStepState") == "COMPLETED"
            (done,) = items(found, "UnifiedProcedureStepPerformedProcedureSequence")
            assert value(items(done, "PerformedWorkitemCodeSequence")[0], "CodeValue") == "P1"
            (made,) = items(done, "OutputInformationSequence")
            assert value(items(made, "ReferencedSOPSequence")[0], "ReferencedSOPInstanceUID") == data_set.SOPInstanceUID

    run(story())


def test_of_many_that_claim_one_workitem_one_gets_it_and_may_claim_again(suite: Suite) -> None:
    async def story() -> None:
        async with WorklistClient(suite.url) as worklist:
            uid = await worklist.create(scheduled())
            results = await asyncio.gather(*(worklist.claim(uid) for _ in range(8)), return_exceptions=True)
            winners = [result for result in results if isinstance(result, str)]
            assert len(winners) == 1
            assert all(isinstance(result, errors.Conflict) for result in results if not isinstance(result, str))
            assert await worklist.claim(uid, winners[0]) == winners[0]
            with pytest.raises(errors.BadRequest, match="Transaction UID"):
                await worklist.complete(uid, new_uid())
            await worklist.cancel(uid, winners[0], "the scanner broke down")
            found = await worklist.get(uid)
            assert value(found, "ProcedureStepState") == "CANCELED"
            (progress,) = items(found, "ProcedureStepProgressInformationSequence")
            assert value(progress, "ReasonForCancellation") == "the scanner broke down"
            with pytest.raises(errors.Conflict):
                await worklist.claim(uid, winners[0])

    run(story())


def test_what_the_server_refuses_is_raised_with_its_sentence(suite: Suite) -> None:
    async def story() -> None:
        async with WorklistClient(suite.url) as worklist:
            with pytest.raises(errors.NotFound, match="there is no workitem"):
                await worklist.get(new_uid())
            with pytest.raises(errors.BadRequest, match="Procedure Step Label"):
                await worklist.create({tag: one for tag, one in scheduled().items() if tag != "00741204"})
            uid = await worklist.create(scheduled())
            with pytest.raises(errors.Conflict, match="exists"):
                await worklist.create(scheduled(), uid)
            with pytest.raises(errors.NotFound):
                await worklist.unsubscribe(new_ae_title(), uid)
            await worklist.request_cancellation(uid, "not needed")
            assert value(await worklist.get(uid), "ProcedureStepState") == "CANCELED"
            with pytest.raises(errors.BadRequest) as refused:
                await worklist.update(uid, element("ProcedureStepLabel", "late"))
            assert refused.value.warning == "The submitted request is inconsistent with the current state of the Workitem."
            with pytest.raises(errors.BadRequest):
                async with aclosing(worklist.events("A" * 17)) as events:
                    await anext(events)

    run(story())


def test_a_server_that_is_not_there_is_unavailable_after_the_time_given() -> None:
    async def story() -> None:
        async with WorklistClient("http://127.0.0.1:9/dicom-web", retry_s=0.3) as worklist:
            with pytest.raises(errors.Unavailable):
                await worklist.get("1.2.3")
            with pytest.raises(errors.Unavailable):
                async with aclosing(worklist.events("AE", within_s=0.3)) as events:
                    await anext(events)

    run(story(), 10)


@pytest.mark.requirement("W-084")
def test_events_go_on_over_killed_gateways_without_a_gap_or_a_repetition(breakable_suite: Suite) -> None:
    suite, seen = breakable_suite, list[Event]()
    cycles = 12

    async def hear(worklist: WorklistClient, ae_title: str, wanted: set[str]) -> None:
        async with aclosing(worklist.events(ae_title)) as events:
            async for event in events:
                if event.event_type != EventType.ASSIGNED:
                    seen.append(event)
                if event.procedure_step_state == "CANCELED":
                    wanted.discard(event.workitem_uid)
                if not wanted:
                    return

    async def cycle(worklist: WorklistClient, uid: str) -> None:
        await worklist.create(scheduled(), uid)
        transaction_uid = await worklist.claim(uid)
        for percent in (25, 50, 75):
            await worklist.report_progress(uid, transaction_uid, percent)
        await worklist.cancel(uid, transaction_uid)

    async def story() -> None:
        ae_title, uids = new_ae_title(), [new_uid() for _ in range(cycles)]
        async with WorklistClient(suite.url) as worklist:
            await worklist.subscribe(ae_title)
            async with asyncio.TaskGroup() as group:
                group.create_task(hear(worklist, ae_title, set(uids)))
                for number, uid in enumerate(uids):
                    await cycle(worklist, uid)
                    if number in (3, 8):
                        await asyncio.to_thread(suite.kill, "gateway")
        for uid in uids:
            told = [told_of(event) for event in seen if event.workitem_uid == uid]
            assert told == ["SCHEDULED", "IN PROGRESS", 25.0, 50.0, 75.0, "CANCELED"], uid

    run(story(), 100)
    suite.wait_ready()


def told_of(event: Event) -> str | float:
    """Return the state or the progress that an event tells."""
    if event.event_type == EventType.PROGRESS_REPORT:
        (progress,) = items(event.data_set, "ProcedureStepProgressInformationSequence")
        return float(value(progress, "ProcedureStepProgress"))
    return event.procedure_step_state


@pytest.mark.distributed
def test_scheduled_workitems_are_those_that_are_there_and_those_that_come(suite: Suite) -> None:
    async def story() -> None:
        label, ae_title = f"L{new_uid()[-12:]}", new_ae_title()
        wanted = scheduled() | element("WorklistLabel", label)
        async with WorklistClient(suite.url) as worklist:
            there = await worklist.create(wanted)
            claimed = await worklist.create(wanted)
            await worklist.claim(claimed)
            async with aclosing(worklist.scheduled(ae_title, {"WorklistLabel": label})) as workitems:
                assert value(await anext(workitems), "SOPInstanceUID") == there
                await worklist.claim(there)
                await worklist.create(scheduled())
                unready = await worklist.create(wanted | element("InputReadinessState", "INCOMPLETE"))
                comes = await worklist.create(wanted)
                assert value(await anext(workitems), "SOPInstanceUID") == comes
                await worklist.claim(comes)
                await worklist.update(unready, element("InputReadinessState", "READY"))
                assert value(await anext(workitems), "SOPInstanceUID") == unready

    run(story())


def test_the_program_of_the_page_runs(suite: Suite, tmp_path: Path) -> None:
    (program,) = code_blocks("worklist-client.md", "python")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "program.py"), suite.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "SCHEDULED Segment liver\n"


def test_the_worklist_commands_list_claim_complete_and_cancel(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def gantry(*words: str, status: int = 0) -> str:
        assert main.main(["worklist", *words, "--url", suite.url]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out.strip()

    label, kept = f"L{new_uid()[-12:]}", str(tmp_path / "claim")
    (tmp_path / "workitem.json").write_text(json.dumps([workitem(x00741202={"vr": "LO", "Value": [label]})]))
    one, two = (gantry("create", str(tmp_path / "workitem.json")) for _ in range(2))
    table = gantry("list", f"WorklistLabel={label}").splitlines()
    assert len(table) == 3
    assert {line.split()[0] for line in table[1:]} == {one, two}
    assert all("SCHEDULED" in line and "Segment liver" in line for line in table[1:])
    transaction_uid = gantry("claim", one, "--transaction-file", kept)
    assert Path(kept).read_text().strip() == transaction_uid
    assert gantry("claim", one, "--transaction-file", kept) == transaction_uid
    assert "claimed by another" in gantry("claim", one, "--transaction-file", str(tmp_path / "other"), status=1)
    assert not (tmp_path / "other").exists()
    gantry("progress", one, "40", "third of seven", "--transaction-file", kept)
    output = "/".join(("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.4", "1.2.5"))
    gantry("complete", one, "--transaction", transaction_uid, "--output", output)
    shown = json.loads(gantry("show", one))
    assert value(shown, "ProcedureStepState") == "COMPLETED"
    assert value(items(shown, "ProcedureStepProgressInformationSequence")[0], "ProcedureStepProgressDescription") == "third of seven"
    (performed,) = items(shown, "UnifiedProcedureStepPerformedProcedureSequence")
    assert value(items(performed, "OutputInformationSequence")[0], "SeriesInstanceUID") == "1.2.4"
    assert "CANCELED" in gantry("cancel", two, "--reason", "twice")
    rows = json.loads(gantry("list", f"WorklistLabel={label}", "ProcedureStepState=CANCELED", "--json"))
    assert [value(row, "SOPInstanceUID") for row in rows] == [two]
    assert "Transaction UID" in gantry("complete", two, status=1)


def test_watch_goes_on_when_the_gateway_is_killed(breakable_suite: Suite) -> None:
    suite, ae_title = breakable_suite, new_ae_title()
    worklist = Worklist(suite.client())
    uid = worklist.created()
    command = [sys.executable, "-m", "gantry_suite.main", "watch", ae_title, "--subscribe", uid, "--url", suite.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=suite.environment()) as watching:
        try:
            assert watching.stdout is not None
            assert value(json.loads(watching.stdout.readline()), "ProcedureStepState") == "SCHEDULED"
            suite.wait_restarted("gateway", suite.kill("gateway"))
            assert worklist.change_state(uid, "IN PROGRESS", new_uid()).status_code == 200
            assert value(json.loads(watching.stdout.readline()), "ProcedureStepState") == "IN PROGRESS"
        finally:
            watching.send_signal(signal.SIGINT)
            assert watching.wait(10) == 0


def test_watch_says_when_nothing_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["watch", "AE", "--url", "http://127.0.0.1:9/dicom-web"]) == 1
    assert "cannot be opened" in capsys.readouterr().err


def test_a_filtered_subscription_hears_what_matches_until_it_ends(suite: Suite) -> None:
    async def story() -> None:
        label, ae_title = f"L,{new_uid()[-12:]}", new_ae_title()
        wanted, heard = scheduled() | element("WorklistLabel", label), list[Event]()
        async with WorklistClient(suite.url) as worklist:
            await worklist.subscribe(ae_title, filter={"WorklistLabel": label, "ScheduledProcedureStepPriority": "HIGH"})
            await worklist.create(scheduled())
            await worklist.create(wanted | element("ScheduledProcedureStepPriority", "LOW"))
            uid = await worklist.create(wanted)
            async with aclosing(worklist.events(ae_title)) as events:
                while not heard or heard[-1].procedure_step_state != "CANCELED":
                    heard.append(await anext(events))
                    if len(heard) == 1:
                        await worklist.request_cancellation(uid)
            assert {event.workitem_uid for event in heard if event.event_type != EventType.SCP_STATUS_CHANGE} == {uid}
            await worklist.unsubscribe(ae_title, filter={"WorklistLabel": label, "ScheduledProcedureStepPriority": "HIGH"})
            with pytest.raises(errors.NotFound):
                await worklist.unsubscribe(ae_title, FILTERED_SUBSCRIPTION)

    run(story())
