"""Delete a study, a series or an instance: an extension to PS3.18, as archives offer it to those who manage their data.

204 means: not found any more by anybody who asks index, and the decision is durable.
"""

from starlette.responses import Response

from gantry.index.v1 import index_pb2
from gantry_gateway.content import retrieval
from gantry_gateway.http import urls
from gantry_gateway.http.request import Request
from gantry_runtime.rpc.rpc_errors import translated


async def delete(request: Request) -> Response:
    """Delete everything in the scope of the path."""
    scope = index_pb2.Scope(
        collection=urls.uid(request.params, "study"),
        series_instance_uid=urls.uid(request.params, "series"),
        sop_instance_uid=urls.uid(request.params, "instance"),
    )
    with translated("index"):
        await request.gateway.index.DeleteInstances(
            index_pb2.DeleteInstancesRequest(scope=scope), timeout=request.gateway.settings.request_timeout_s
        )
    # At once on this port; other replicas hear of it from index.
    retrieval.of(request).records.changed(scope.collection)
    return Response(status_code=204)
