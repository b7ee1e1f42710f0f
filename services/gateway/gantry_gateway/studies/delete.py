"""Delete a study, a series or an instance: an extension to PS3.18 for clients that manage data.

204 means that the deletion is durable, and that later requests to index do not find the instances.
"""

from starlette.responses import Response

from gantry.index.v1 import index_pb2
from gantry_gateway.content import retrieval
from gantry_gateway.http import urls
from gantry_gateway.http.request import Request
from gantry_runtime.rpc.rpc_errors import translated


async def delete(request: Request) -> Response:
    """Answer DELETE of a study, a series or an instance."""
    scope = index_pb2.Scope(
        collection=urls.uid(request.params, "study"),
        series_instance_uid=urls.uid(request.params, "series"),
        sop_instance_uid=urls.uid(request.params, "instance"),
    )
    with translated("index"):
        await request.gateway.index.DeleteInstances(
            index_pb2.DeleteInstancesRequest(scope=scope), timeout=request.gateway.settings.request_timeout_s
        )
    # The gateways of this port notice it at once; index notifies the other gateways
    retrieval.of(request).records.changed(scope.collection)
    return Response(status_code=204)
