"""Settings of the gateway."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import setting

LOOPBACK = ("127.0.0.0/8", "::1/128")


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(ProcessSettings):
    """Settings of gantry-gateway."""

    host: str = setting("127.0.0.1", "Address that the gateway listens on.")
    port: int = setting(8080, "Port that the gateway listens on.")
    port_shared_by: Path | None = setting(
        None,
        "File through which gateways that share a port notice each other's changes; empty: one gateway uses the port.",
    )
    gateway_admin_listen: str = setting("127.0.0.1:0", "HOST:PORT of the gateway's metrics and health.")
    blob_address: str = setting("127.0.0.1:7001", "HOST:PORT of blob, or `local:PATH`.")
    index_address: str = setting("127.0.0.1:7002", "HOST:PORT of index, or `local:PATH`.")
    renderer_address: str = setting("127.0.0.1:7003", "HOST:PORT of renderer, or `local:PATH`.")
    workflow_address: str = setting("127.0.0.1:7004", "HOST:PORT of workflow, or `local:PATH`.")
    base_path: str = setting("/dicom-web", "Path of the DICOMweb root.")
    wado_path: str = setting("/wado", "Path of the URI service.")
    public_url: str = setting("", "Scheme and authority of URLs in responses; empty: from the request (Forwarded, X-Forwarded-*, Host).")
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "Addresses or networks (10.0.0.0/8) of proxies whose Forwarded and X-Forwarded-* count, separated by commas; empty: loopback.",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Hosts that requests may name besides localhost, GANTRY_HOST and that of GANTRY_PUBLIC_URL, separated by commas; * for any; "
        "empty: no others if the gateway listens on loopback, else any.",
    )
    cors_origins: tuple[str, ...] = setting(
        (), "Origins of pages that may read responses and send changes, separated by commas; empty: local origins only; * for any."
    )
    strict_accept: bool = setting(False, "Answer 406 to a request without Accept, as PS3.18 §8.7.5 says; else a missing Accept means */*.")
    blob_directory: Path | None = setting(
        None, "Directory of the objects, if this gateway shares it with blob: files are mapped instead of streamed."
    )
    store_outcome_s: float = setting(5.0, "Seconds to wait for index after a store; then 202 with a Warning.")
    store_max_s: float = setting(3600.0, "Seconds that one store request may take.")
    upload_idle_s: float = setting(60.0, "Seconds without a byte after which an upload is aborted.")
    store_max_bytes: int = setting(1 << 40, "Largest payload of a store request in bytes; above it 413, and nothing is stored.")
    store_max_parts: int = setting(
        100_000, "Maximum number of parts of a store request, including the data sets of metadata parts; above it 413."
    )
    workitem_max_bytes: int = setting(4 << 20, "Largest workitem payload in bytes; above it 413.")
    requesting_ae: str = setting("GANTRY", "Requesting AE (0074,1236) of cancel requests, because a web request does not name one.")
    fallback_ae_titles: tuple[str, ...] = setting(
        (),
        "AE titles, separated by commas, that get SCP Status Change reports of restarts without a subscription, also after an absence.",
    )
    websocket_max_connections: int = setting(10_000, "Maximum number of open notification connections per gateway; above it 503.")
    search_max_results: int = setting(1000, "Maximum number of results of a search, and the page size if the request has no limit.")
    retrieve_max_bytes: int = setting(0, "Maximum stored bytes of a retrieve response; above it 413; 0: no limit.")
    request_timeout_s: float = setting(30.0, "Seconds for the response of other services to a search, retrieve or change.")
    drain_s: float = setting(10.0, "Seconds for running requests to end when the gateway stops.")
    record_cache_entries: int = setting(50_000, "Maximum number of cached instance records.")
    metadata_cache_bytes: int = setting(
        32 << 20,
        "Bytes of the cache of metadata responses; one response may take an eighth of it; 0: no cache.",
    )
    rendition_cache_bytes: int = setting(
        32 << 20, "Bytes of the cache of transcoded frames and instances; one entry may take an eighth of it; 0: no cache."
    )

    def __post_init__(self) -> None:
        """Check the networks of proxies.

        Raises:
            ValueError: one is none.
        """
        self.proxy_networks()

    def proxy_networks(self) -> "list[ipaddress.IPv4Network | ipaddress.IPv6Network]":
        """Return the networks of trusted proxies; loopback where none is named.

        Raises:
            ValueError: one is none.
        """
        try:
            return [ipaddress.ip_network(text) for text in self.trusted_proxies or LOOPBACK]
        except ValueError as error:
            raise ValueError(f"GANTRY_TRUSTED_PROXIES: {error}") from None
