"""The URLs that we hand out: scheme and authority as the client sees them, resources below the base.

Source: PS3.18 §8.2; RFC 7239 for Forwarded.
"""

import re
from collections.abc import Callable

from starlette.types import Scope

from gantry_standard import errors
from gantry_standard.dicom.uids import is_valid_uid

_FORWARDED = re.compile(r'(?:^|[;,\s])(proto|host)=("[^"]*"|[^;,\s]*)', re.IGNORECASE)
DEFAULT_PORT = {"http": 80, "https": 443}
HTTP_SCHEME = {"ws": "http", "wss": "https"}
"""The scheme of resources for a request that is a WebSocket handshake."""
_PORT = re.compile("[1-9][0-9]{0,4}")
_WITH_PORT = re.compile(r":[0-9]+$")
AUTHORITY = re.compile(r"(?:[A-Za-z0-9._~%-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~-]{1,255}){1,16}/?")
"""Segments of a path; none of them is empty, `.` or `..`."""


def base_url(scope: Scope, base_path: str, public_url: str, believes: Callable[[Scope], bool]) -> str:
    """Return the URL of the DICOMweb root for this request, without a slash at the end.

    Forwarded (first element) wins over X-Forwarded-Proto, -Host, -Port, -Prefix, these over Host. X-Forwarded-Port counts where the host
    that the client asked for came without a port.
    What is no plain authority, scheme or path is ignored.

    Args:
        believes: says whether forwarding headers count; it is asked where there are any.
    """
    if public_url:
        return public_url.rstrip("/") + base_path
    scheme: str = scope.get("scheme", "http")
    proto, host, prefix = HTTP_SCHEME.get(scheme, scheme), "", ""
    x_proto = x_host = x_port = x_prefix = forwarded = ""
    for raw_name, raw_value in scope["headers"]:
        if raw_name == b"host":
            host = raw_value.decode("latin-1")
        elif raw_name[:11] == b"x-forwarded":
            value = raw_value.decode("latin-1").split(",")[0].strip()
            if raw_name == b"x-forwarded-proto":
                x_proto = value
            elif raw_name == b"x-forwarded-host":
                x_host = value
            elif raw_name == b"x-forwarded-port":
                x_port = value
            elif raw_name == b"x-forwarded-prefix":
                x_prefix = value
        elif raw_name == b"forwarded":
            forwarded = raw_value.decode("latin-1").split(",")[0]
    if (x_proto or x_host or x_port or x_prefix or forwarded) and not believes(scope):
        x_proto = x_host = x_port = x_prefix = forwarded = ""
    if forwarded:
        given = {name.lower(): value.strip('"') for name, value in _FORWARDED.findall(forwarded)}
        x_proto, x_host, x_port = given.get("proto", x_proto), given.get("host", x_host), "" if "host" in given else x_port
    server_host, server_port = scope.get("server") or ("localhost", None)
    if host == server_host and server_port not in (None, DEFAULT_PORT[proto]) and not (x_host or x_proto or x_port or x_prefix):
        # A client that leaves our port out of Host (some HTTP libraries do) has connected to it all the same.
        host = f"{host}:{server_port}"
    if x_proto.lower() in ("http", "https"):
        proto = x_proto.lower()
    if x_host and AUTHORITY.fullmatch(x_host):
        host = x_host
    if _PORT.fullmatch(x_port) and not _WITH_PORT.search(host) and int(x_port) != DEFAULT_PORT[proto]:
        host = f"{host}:{x_port}"
    if x_prefix and _PREFIX.fullmatch(x_prefix):
        prefix = x_prefix.rstrip("/")
    if not AUTHORITY.fullmatch(host):
        host = f"{server_host}:{server_port}" if server_port is not None else server_host
    return f"{proto}://{host}{prefix}{base_path}"


def uid(params: dict[str, str], name: str) -> str:
    """Return a UID of the path; "" where the resource has none of this name.

    Raises:
        errors.BadRequest: it is no UID.
    """
    value = params.get(name, "")
    if value and not is_valid_uid(value):
        raise errors.BadRequest(f"the {name} of the path is no UID: expected 1 to 64 digits and dots")
    return value


def study(base: str, study_instance_uid: str) -> str:
    """Return the URL of a study."""
    return f"{base}/studies/{study_instance_uid}"


def series(base: str, study_instance_uid: str, series_instance_uid: str) -> str:
    """Return the URL of a series."""
    return f"{base}/studies/{study_instance_uid}/series/{series_instance_uid}"


def instance(base: str, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> str:
    """Return the URL of an instance."""
    return f"{base}/studies/{study_instance_uid}/series/{series_instance_uid}/instances/{sop_instance_uid}"


def workitem(base: str, workitem_uid: str) -> str:
    """Return the URL of a workitem."""
    return f"{base}/workitems/{workitem_uid}"
