"""Every transaction that PS3.18 has below the base URI: one row each.

To add a transaction: set the handler in its row (module:function below `gantry_gateway`). A row without a handler
answers 501. The first matching row wins, so fixed segments stand before variable ones.

Source: PS3.18 Table H-1.
"""

import re
from dataclasses import dataclass

S = "/studies/{study}"
E = f"{S}/series/{{series}}"
I = f"{E}/instances/{{instance}}"  # noqa: E741
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"


@dataclass(frozen=True)
class Route:
    """One transaction on one resource.

    Attributes:
        method: of HTTP; HEAD is answered by the GET row.
        path: below the base; {name} is one segment.
        transaction: name of the transaction, for metrics and the conformance statement.
        handler: module:function, or "" while it is not offered (501).
    """

    method: str
    path: str
    transaction: str
    handler: str = ""


ROUTES = (
    # Studies, Search (§10.6)
    Route("GET", "/studies", "SearchStudies", "studies.search:search_studies"),
    Route("GET", f"{S}/series", "SearchSeries", "studies.search:search_series"),
    Route("GET", f"{E}/instances", "SearchInstances", "studies.search:search_instances"),
    Route("GET", f"{S}/instances", "SearchStudyInstances", "studies.search:search_study_instances"),
    Route("GET", "/series", "SearchAllSeries", "studies.search:search_all_series"),
    Route("GET", "/instances", "SearchAllInstances", "studies.search:search_all_instances"),
    # Studies, Store (§10.5)
    Route("POST", "/studies", "StoreInstances", "studies.store:store"),
    Route("POST", S, "StoreStudyInstances", "studies.store:store"),
    # Studies, Retrieve (§10.4)
    Route("GET", S, "RetrieveStudy", "studies.retrieve:retrieve_instances"),
    Route("GET", E, "RetrieveSeries", "studies.retrieve:retrieve_instances"),
    Route("GET", I, "RetrieveInstance", "studies.retrieve:retrieve_instances"),
    Route("GET", f"{S}/metadata", "RetrieveStudyMetadata", "studies.metadata:retrieve_metadata"),
    Route("GET", f"{E}/metadata", "RetrieveSeriesMetadata", "studies.metadata:retrieve_metadata"),
    Route("GET", f"{I}/metadata", "RetrieveInstanceMetadata", "studies.metadata:retrieve_metadata"),
    Route("GET", f"{I}/frames/{{frames}}", "RetrieveFrames", "studies.frames:retrieve_frames"),
    Route("GET", f"{I}/bulkdata/{{bulkdata:path}}", "RetrieveBulkdata", "studies.bulkdata:retrieve_bulkdata"),
    Route("GET", f"{S}/bulkdata", "RetrieveStudyBulkdata", "studies.bulkdata:retrieve_all_bulkdata"),
    Route("GET", f"{E}/bulkdata", "RetrieveSeriesBulkdata", "studies.bulkdata:retrieve_all_bulkdata"),
    Route("GET", f"{I}/bulkdata", "RetrieveInstanceBulkdata", "studies.bulkdata:retrieve_all_bulkdata"),
    Route("GET", f"{S}/pixeldata", "RetrieveStudyPixelData", "studies.bulkdata:retrieve_pixel_data"),
    Route("GET", f"{E}/pixeldata", "RetrieveSeriesPixelData", "studies.bulkdata:retrieve_pixel_data"),
    Route("GET", f"{I}/pixeldata", "RetrieveInstancePixelData", "studies.bulkdata:retrieve_pixel_data"),
    Route("GET", f"{S}/rendered", "RetrieveRenderedStudy"),
    Route("GET", f"{E}/rendered", "RetrieveRenderedSeries"),
    Route("GET", f"{I}/rendered", "RetrieveRenderedInstance", "studies.rendered:retrieve_rendered_instance"),
    Route("GET", f"{I}/frames/{{frames}}/rendered", "RetrieveRenderedFrames", "studies.rendered:retrieve_rendered_frames"),
    Route("GET", f"{S}/thumbnail", "RetrieveStudyThumbnail"),
    Route("GET", f"{E}/thumbnail", "RetrieveSeriesThumbnail"),
    Route("GET", f"{I}/thumbnail", "RetrieveInstanceThumbnail"),
    Route("GET", f"{I}/frames/{{frames}}/thumbnail", "RetrieveFramesThumbnail"),
    # Delete: an extension that clients which manage data have.
    Route("DELETE", S, "DeleteStudy", "studies.delete:delete"),
    Route("DELETE", E, "DeleteSeries", "studies.delete:delete"),
    Route("DELETE", I, "DeleteInstance", "studies.delete:delete"),
    # Worklist (chapter 11)
    Route("POST", "/workitems", "CreateWorkitem", "worklist.transactions:create"),
    Route("GET", "/workitems", "SearchWorkitems", "worklist.transactions:search"),
    Route("GET", "/workitems/{workitem}", "RetrieveWorkitem", "worklist.transactions:retrieve"),
    Route("POST", "/workitems/{workitem}", "UpdateWorkitem", "worklist.transactions:update"),
    Route("PUT", "/workitems/{workitem}/state", "ChangeWorkitemState", "worklist.transactions:change_state"),
    Route("POST", "/workitems/{workitem}/cancelrequest", "RequestWorkitemCancellation", "worklist.transactions:request_cancellation"),
    Route(
        "POST", f"/workitems/{FILTERED}/subscribers/{{aetitle}}", "SubscribeFilteredWorklist", "worklist.transactions:subscribe_filtered"
    ),
    Route(
        "DELETE",
        f"/workitems/{FILTERED}/subscribers/{{aetitle}}",
        "UnsubscribeFilteredWorklist",
        "worklist.transactions:unsubscribe_filtered",
    ),
    Route(
        "POST",
        f"/workitems/{FILTERED}/subscribers/{{aetitle}}/suspend",
        "SuspendFilteredWorklist",
        "worklist.transactions:suspend_filtered",
    ),
    Route("POST", "/workitems/{workitem}/subscribers/{aetitle}", "Subscribe", "worklist.transactions:subscribe"),
    Route("DELETE", "/workitems/{workitem}/subscribers/{aetitle}", "Unsubscribe", "worklist.transactions:unsubscribe"),
    Route("POST", "/workitems/{workitem}/subscribers/{aetitle}/suspend", "SuspendGlobalSubscription", "worklist.transactions:suspend"),
    Route("GET", "/subscribers/{aetitle}", "OpenNotificationConnection", "worklist.notifications:not_upgraded"),
    Route("GET", "/ws/subscribers/{aetitle}", "OpenNotificationConnectionBelowWs", "worklist.notifications:not_upgraded"),
    # Capabilities (§8.9), Non-patient instances (chapter 12), Storage commitment (13), MSPS (14), MPPS (15)
    Route("OPTIONS", "/", "RetrieveCapabilities"),
    Route("GET", "/color-palettes", "SearchColorPalettes"),
    Route("POST", "/color-palettes", "StoreColorPalettes"),
    Route("GET", "/defined-procedure-protocols", "SearchDefinedProcedureProtocols"),
    Route("POST", "/defined-procedure-protocols", "StoreDefinedProcedureProtocols"),
    Route("GET", "/hanging-protocols", "SearchHangingProtocols"),
    Route("POST", "/hanging-protocols", "StoreHangingProtocols"),
    Route("GET", "/implant-templates", "SearchImplantTemplates"),
    Route("POST", "/implant-templates", "StoreImplantTemplates"),
    Route("GET", "/inventories", "SearchInventories"),
    Route("POST", "/inventories", "StoreInventories"),
    Route("GET", "/color-palettes/{uid}", "RetrieveColorPalette"),
    Route("GET", "/defined-procedure-protocols/{uid}", "RetrieveDefinedProcedureProtocol"),
    Route("GET", "/hanging-protocols/{uid}", "RetrieveHangingProtocol"),
    Route("GET", "/implant-templates/{uid}", "RetrieveImplantTemplate"),
    Route("GET", "/inventories/{uid}", "RetrieveInventory"),
    Route("POST", "/commitment-requests/{uid}", "RequestStorageCommitment"),
    Route("GET", "/commitment-requests/{uid}", "ResultCheckStorageCommitment"),
    Route("GET", "/modality-scheduled-procedure-steps", "SearchModalityScheduledProcedureSteps"),
    Route("POST", "/modality-performed-procedure-steps/{uid}", "CreateModalityPerformedProcedureStep"),
    Route("GET", "/modality-performed-procedure-steps/{uid}", "RetrieveModalityPerformedProcedureStep"),
)


def compile_path(path: str) -> re.Pattern[str]:
    """Return a pattern of the path: {name} is one segment, {name:path} the rest."""
    pieces = re.split(r"(\{[a-z]+(?::path)?\})", path)
    made = ""
    for piece in pieces:
        if piece.endswith(":path}"):
            made += f"(?P<{piece[1:-6]}>.+)"
        elif piece.startswith("{"):
            made += f"(?P<{piece[1:-1]}>[^/]+)"
        else:
            made += re.escape(piece)
    return re.compile(made)
