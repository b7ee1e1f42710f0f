"""gRPC edge of workflow: parse a request, change or read the stream WORKITEMS, build the response."""

from collections.abc import Awaitable, Callable
from typing import Any

from gantry.events.v1.events_pb2 import SubscriptionState, WorkitemState
from gantry.workflow.v1 import workflow_pb2 as pb
from gantry.workflow.v1.workflow_pb2_grpc import WorkflowServiceServicer
from gantry_runtime import call_context
from gantry_standard import errors
from gantry_standard.dicom.uids import is_valid_uid
from gantry_standard.query import matching
from gantry_standard.workitems import FILTERED_SUBSCRIPTION, GLOBAL_SUBSCRIPTION, is_valid_ae_title, studies_of
from gantry_workflow.settings import WorkflowSettings
from gantry_workflow.streams.report_writer import ReportWriter
from gantry_workflow.streams.workitems import Workitems
from gantry_workflow.workitems import dataset, subscriptions, transactions
from gantry_workflow.workitems.subscriptions import WorklistSubscription
from gantry_workflow.workitems.transactions import Decision


def check_uid(uid: str) -> None:
    """Check the form of a UID (PS3.5 §9.1).

    Raises:
        errors.BadRequest: it is not 1 to 64 digits and dots, or has an empty component.
    """
    if not is_valid_uid(uid):
        raise errors.BadRequest(f"{uid[:70]!r} is not a UID: expected 1 to 64 digits and dots")


def check_ae_title(ae_title: str) -> None:
    """Check the form of an AE title (PS3.5 §6.2).

    Raises:
        errors.BadRequest: it is not 1 to 16 printable ASCII characters, or has a backslash.
    """
    if not is_valid_ae_title(ae_title):
        raise errors.BadRequest("an AE title has 1 to 16 printable ASCII characters, no backslash")


class WorkflowEdge(WorkflowServiceServicer):
    """The gRPC service of workflow.

    Args:
        missing: returns the reason why the service is not ready; "" if it is ready.
    """

    def __init__(
        self, workitems: Workitems, reports: ReportWriter, settings: WorkflowSettings, missing: Callable[[], Awaitable[str]]
    ) -> None:
        self._workitems = workitems
        self._reports = reports
        self._settings = settings
        self._missing = missing

    async def CreateWorkitem(self, request: pb.CreateWorkitemRequest, context: Any) -> pb.CreateWorkitemResponse:
        """PS3.18 §11.4."""
        sent = dataset.parse(request.dicom_json)
        uid, inside = request.workitem_uid, transactions.uid_of(sent)
        if uid and inside and uid != inside:
            raise errors.BadRequest("SOP Instance UID (0008,0018) of the payload differs from the workitem UID of the URL")
        uid = uid or inside
        check_uid(uid)
        if uid in WORKLISTS:
            raise errors.BadRequest(f"{uid} is the well-known UID of a worklist, not the UID of a workitem")
        strict = self._settings.workitem_create == "strict"
        # A UID that is in use is refused, also if the caller may not see its workitem: two workitems cannot have the same UID.
        decision = await self._workitems.change(
            uid, lambda state, _: checked(transactions.create(state, uid, sent, strict)), "create", is_new=True
        )
        return pb.CreateWorkitemResponse(workitem_uid=uid, warnings=decision.warnings)

    async def RetrieveWorkitem(self, request: pb.RetrieveWorkitemRequest, context: Any) -> pb.RetrieveWorkitemResponse:
        """PS3.18 §11.5."""
        check_uid(request.workitem_uid)
        state, sequence = await self._workitems.read(request.workitem_uid)
        state = visible(state)
        if state is None:
            raise errors.NotFound(f"there is no workitem {request.workitem_uid}")
        if state.deleted:
            raise errors.Gone(f"workitem {request.workitem_uid} has been deleted")
        return pb.RetrieveWorkitemResponse(dicom_json=state.dicom_json, version=sequence)

    async def UpdateWorkitem(self, request: pb.UpdateWorkitemRequest, context: Any) -> pb.UpdateWorkitemResponse:
        """PS3.18 §11.6."""
        uid, transaction_uid = request.workitem_uid, request.transaction_uid
        check_uid(uid)
        changes = dataset.parse(request.dicom_json)
        decision = await self._change(uid, lambda state, _: transactions.update(state, uid, transaction_uid, changes), "update")
        return pb.UpdateWorkitemResponse(warnings=decision.warnings)

    async def ChangeWorkitemState(self, request: pb.ChangeWorkitemStateRequest, context: Any) -> pb.ChangeWorkitemStateResponse:
        """PS3.18 §11.7."""
        uid = request.workitem_uid
        check_uid(uid)
        wanted = transactions.parse_state_request(request.dicom_json)
        decision = await self._change(uid, lambda state, _: transactions.change_state(state, uid, wanted), "state")
        return pb.ChangeWorkitemStateResponse(warnings=decision.warnings)

    async def RequestWorkitemCancellation(
        self, request: pb.RequestWorkitemCancellationRequest, context: Any
    ) -> pb.RequestWorkitemCancellationResponse:
        """PS3.18 §11.8."""
        uid = request.workitem_uid
        check_uid(uid)
        reasons = dataset.parse(request.dicom_json) if request.dicom_json else {}
        worklist_subscriptions = await self._workitems.subscriptions()

        def decide(state: WorkitemState | None, sequence: int) -> Decision:
            has_audience = state is not None and bool(subscriptions.audience(state, sequence, worklist_subscriptions, subscriptions.LATEST))
            return transactions.request_cancellation(state, uid, reasons, request.requesting_ae, has_audience)

        decision = await self._change(uid, decide, "cancelrequest")
        return pb.RequestWorkitemCancellationResponse(warnings=decision.warnings)

    async def Subscribe(self, request: pb.SubscribeRequest, context: Any) -> pb.SubscribeResponse:
        """PS3.18 §11.10."""
        uid, ae_title = request.workitem_uid, request.ae_title
        check_uid(uid)
        check_ae_title(ae_title)
        granted = self._settings.deletion_locks
        if uid not in WORKLISTS:
            lock = request.deletion_lock
            decision = await self._change(uid, lambda state, _: transactions.subscribe(state, uid, ae_title, lock, granted), "subscribe")
            return pb.SubscribeResponse(warnings=decision.warnings)
        text = await self._new_filter(ae_title, request.filter) if uid == FILTERED_SUBSCRIPTION else ""
        lock = request.deletion_lock and granted
        await self._workitems.change_subscription(
            ae_title, text, lambda state, sequence: subscriptions.subscribe(state, sequence, ae_title, lock, text)
        )
        return pb.SubscribeResponse(warnings=[transactions.LOCK_REFUSED] if request.deletion_lock and not granted else [])

    async def Unsubscribe(self, request: pb.UnsubscribeRequest, context: Any) -> pb.UnsubscribeResponse:
        """PS3.18 §11.11."""
        uid, ae_title = request.workitem_uid, request.ae_title
        check_uid(uid)
        check_ae_title(ae_title)
        if uid in WORKLISTS:
            await self._change_worklist(uid, ae_title, request.filter, subscriptions.unsubscribe)
            return pb.UnsubscribeResponse()
        worklist_subscriptions = await self._workitems.subscriptions(ae_title)

        def decide(state: WorkitemState | None, sequence: int) -> Decision:
            is_subscribed = (
                state is not None
                and subscriptions.lock_on(state, sequence, ae_title, worklist_subscriptions, subscriptions.LATEST) is not None
            )
            return transactions.unsubscribe(state, uid, ae_title, is_subscribed)

        await self._change(uid, decide, "unsubscribe")
        return pb.UnsubscribeResponse()

    async def SuspendGlobalSubscription(
        self, request: pb.SuspendGlobalSubscriptionRequest, context: Any
    ) -> pb.SuspendGlobalSubscriptionResponse:
        """PS3.18 §11.12."""
        check_ae_title(request.ae_title)
        if request.workitem_uid not in WORKLISTS:
            raise errors.BadRequest(f"only a subscription to the worklist, {' or '.join(WORKLISTS)}, can be suspended")
        await self._change_worklist(request.workitem_uid, request.ae_title, request.filter, subscriptions.suspend)
        return pb.SuspendGlobalSubscriptionResponse()

    async def _change(self, uid: str, decide: Callable[[WorkitemState | None, int], Decision], kind: str) -> Decision:
        """Change a workitem for the caller; to `decide`, one that the caller may not see is None. Errors as `Workitems.change`."""
        return await self._workitems.change(uid, lambda state, sequence: checked(decide(visible(state), sequence)), kind)

    async def _new_filter(self, ae_title: str, text: str) -> str:
        """Return the normalised filter of a new subscription.

        Raises:
            errors.BadRequest: it is too long, or not a filter.
            errors.Forbidden: the AE title, or all AE titles together, have the maximum of filtered subscriptions.
        """
        if len(text) > subscriptions.MAX_FILTER_CHARACTERS:
            raise errors.BadRequest(f"the filter has {len(text)} characters, expected at most {subscriptions.MAX_FILTER_CHARACTERS}")
        text = matching.read_filter(text).text
        live = [subscription for subscription in await self._workitems.subscriptions() if subscription.filter and _is_live(subscription)]
        others = [
            subscription
            for subscription in live
            if (subscription.ae_title, subscription.filter and subscription.filter.text) != (ae_title, text)
        ]
        own = sum(subscription.ae_title == ae_title for subscription in others)
        if own >= subscriptions.MAX_FILTERS_OF_ONE or len(others) >= subscriptions.MAX_FILTERS:
            raise errors.Forbidden(
                f"{ae_title} has {own} filtered subscriptions, expected fewer than {subscriptions.MAX_FILTERS_OF_ONE}; "
                f"all AE titles have {len(others)}, expected fewer than {subscriptions.MAX_FILTERS}"
            )
        return text

    async def _change_worklist(self, uid: str, ae_title: str, text: str, change: "ChangeSubscription") -> None:
        """Change a subscription of an AE title to the worklist.

        Args:
            uid: whether the subscription to the whole worklist or filtered ones are changed.
            text: the filter of the filtered subscription; "" for all filtered subscriptions of the AE title.

        Raises:
            errors.NotFound: there is no such subscription.
        """
        texts = [""]
        if uid == FILTERED_SUBSCRIPTION and text:
            texts = [matching.read_filter(text).text]
        elif uid == FILTERED_SUBSCRIPTION:
            texts = [
                subscription.filter.text
                for subscription in await self._workitems.subscriptions(ae_title)
                if subscription.filter and _is_live(subscription)
            ]
        refused: errors.NotFound | None = None
        changed = False
        for filter_text in texts:
            try:
                await self._workitems.change_subscription(ae_title, filter_text, lambda state, sequence: change(state, sequence, ae_title))
                changed = True
            except errors.NotFound as error:
                # One of several subscriptions may already be suspended or ended.
                refused = error
        if not changed:
            raise refused or errors.NotFound(f"{ae_title} does not subscribe to the filtered worklist")

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Return whether workflow is ready, and up to which sequence event reports are written."""
        try:
            last, reported = await self._reports.progress()
        except errors.GantryError as error:
            return pb.GetStatusResponse(ready=False, explanation=error.message)
        missing = await self._missing()
        return pb.GetStatusResponse(ready=not missing, explanation=missing, workitems_sequence=last, reported_sequence=reported)


def visible(state: WorkitemState | None) -> WorkitemState | None:
    """Return a workitem if the caller may see it, else None.

    A tombstone does not record the studies of its workitem, so a restricted caller does not see it (404 instead of 410).
    """
    caller = call_context.caller()
    if state is None or not caller.is_restricted:
        return state
    return state if state.dicom_json and caller.may_see_referrer(studies_of(dataset.read(state.dicom_json))) else None


def checked(decision: Decision) -> Decision:
    """Return a decision, unless the caller could not see the workitem after it.

    Raises:
        errors.BadRequest: the workitem refers to no study, or to one that the caller may not see. Whether such a study exists
            makes no difference.
    """
    if decision.state is not None and visible(decision.state) is None:
        raise errors.BadRequest("a workitem of this caller must refer to at least one study, and only to studies that the caller may see")
    return decision


WORKLISTS = (GLOBAL_SUBSCRIPTION, FILTERED_SUBSCRIPTION)

ChangeSubscription = Callable[[SubscriptionState | None, int, str], SubscriptionState]


def _is_live(subscription: WorklistSubscription) -> bool:
    return subscription.state != SubscriptionState.STATE_UNSUBSCRIBED
