"""The paths of the gateway: the table of mounts, and for each mount one row per transaction.

To add a transaction, set the handler in its row (module:function below `gantry_gateway`). A row without a handler answers 501. The first
matching row is used, so rows with fixed segments come before rows with variable ones.
To add a part of the gateway with its own path, such as a console, add its rows, and a row to `mounts`.

Source: PS3.18 Table H-1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gantry_gateway.settings import GatewaySettings

S = "/studies/{study}"
E = f"{S}/series/{{series}}"
I = f"{E}/instances/{{instance}}"  # noqa: E741
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"


WEBSOCKET = "WEBSOCKET"
"""Method of a row that answers WebSocket handshakes. Its handler returns an ASGI application that serves the connection."""

EVERY_RESOURCE = "*"
"""Path of a row that applies to each path of the other rows."""


@dataclass(frozen=True)
class Route:
    """One transaction on one resource.

    Attributes:
        method: HTTP method, or `WEBSOCKET` for a WebSocket handshake; the GET row also answers HEAD.
        path: below the mount; {name} is one segment, {name:path} the rest of the path.
        transaction: name of the transaction, for metrics and the conformance statement.
        handler: module:function, or "" if the transaction is not offered (501).
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
    # Delete: an extension to the standard for clients that manage data
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
    # Notification connections (§8.10); a GET that is not a WebSocket handshake is answered 400 with the required headers
    Route(WEBSOCKET, "/subscribers/{aetitle}", "OpenNotificationConnection", "worklist.notifications:open_connection"),
    Route(WEBSOCKET, "/ws/subscribers/{aetitle}", "OpenNotificationConnectionBelowWs", "worklist.notifications:open_connection"),
    Route(WEBSOCKET, "/", "OpenNotificationConnectionAtBase", "worklist.notifications:open_connection"),
    Route("GET", "/subscribers/{aetitle}", "NotUpgraded", "worklist.notifications:not_upgraded"),
    Route("GET", "/ws/subscribers/{aetitle}", "NotUpgradedBelowWs", "worklist.notifications:not_upgraded"),
    # Capabilities (§8.9), Non-patient instances (chapter 12), Storage commitment (13), MSPS (14), MPPS (15)
    Route("OPTIONS", EVERY_RESOURCE, "RetrieveCapabilities"),
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


URI_SERVICE = (
    # Chapter 9
    Route("GET", "/", "RetrieveURI"),
)

HEALTH_TRANSACTION = "health"
HEALTH = (
    Route("GET", "/live", HEALTH_TRANSACTION, "http.health:live"),
    Route("GET", "/ready", HEALTH_TRANSACTION, "http.health:ready"),
    Route("GET", "/suite", HEALTH_TRANSACTION, "http.health:suite"),
)


@dataclass(frozen=True)
class Mount:
    """A part of the gateway and its path.

    Attributes:
        name: of the part, for error messages.
        path: without a slash at the end; "" for the root of the server.
        routes: the rows of the part, with paths below `path`.
    """

    name: str
    path: str
    routes: Sequence[Route]


def mounts(settings: GatewaySettings, routes: Sequence[Route] = ROUTES) -> tuple[Mount, ...]:
    """Return the table of mounts. If a path is below two mounts, the mount with the longer path answers.

    Args:
        routes: the rows of the DICOMweb root.
    """
    return (
        Mount("DICOMweb", settings.base_path.rstrip("/"), routes),
        Mount("URI service (WADO-URI)", settings.wado_path.rstrip("/"), URI_SERVICE),
        Mount("health", "/healthz", HEALTH),
    )


def compile_path(path: str) -> re.Pattern[str]:
    """Return the pattern of a path: {name} matches one segment, {name:path} the rest of the path."""
    segments = re.split(r"(\{[a-z]+(?::path)?\})", path)
    pattern = ""
    for segment in segments:
        if segment.endswith(":path}"):
            pattern += f"(?P<{segment[1:-6]}>.+)"
        elif segment.startswith("{"):
            pattern += f"(?P<{segment[1:-1]}>[^/]+)"
        else:
            pattern += re.escape(segment)
    return re.compile(pattern)
