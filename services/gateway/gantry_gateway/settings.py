"""What the gateway can be told."""

from dataclasses import dataclass
from pathlib import Path

from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import setting


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(ProcessSettings):
    """Settings of gantry-gateway."""

    host: str = setting("127.0.0.1", "Address that the gateway listens on.")
    port: int = setting(8080, "Port that the gateway listens on.")
    port_shared_by: Path | None = setting(
        None,
        "File by which gateways on one port of this machine learn of each other's changes; empty: one gateway has the port.",
    )
    gateway_admin_listen: str = setting("127.0.0.1:0", "HOST:PORT of the gateway's metrics and health.")
    blob_address: str = setting("127.0.0.1:7001", "HOST:PORT of blob, or `local:PATH`.")
    index_address: str = setting("127.0.0.1:7002", "HOST:PORT of index, or `local:PATH`.")
    renderer_address: str = setting("127.0.0.1:7003", "HOST:PORT of renderer, or `local:PATH`.")
    workflow_address: str = setting("127.0.0.1:7004", "HOST:PORT of workflow, or `local:PATH`.")
    base_path: str = setting("/dicom-web", "Path of the DICOMweb root.")
    wado_path: str = setting("/wado", "Path of the URI service.")
    public_url: str = setting("", "Scheme and authority of the URLs handed out; empty: from the request (Forwarded, X-Forwarded-*, Host).")
    cors_origins: tuple[str, ...] = setting(
        (), "Origins that browsers may call from, separated by commas; empty: local origins only; * for any."
    )
    strict_accept: bool = setting(
        False, "Answer 406 where a request without Accept might have a payload, as PS3.18 §8.7.5 says; else it means */*."
    )
    blob_directory: Path | None = setting(
        None, "Directory of the objects, where this gateway shares it with blob: pixels are mapped instead of streamed."
    )
    store_outcome_s: float = setting(5.0, "Seconds to wait for index after a store; then 202 with a Warning.")
    store_max_s: float = setting(3600.0, "Seconds that one store request may take.")
    upload_idle_s: float = setting(60.0, "Seconds without a byte after which a payload is given up.")
    store_max_bytes: int = setting(1 << 40, "Largest payload of one store request in bytes; more is 413, and nothing of it is stored.")
    store_max_parts: int = setting(100_000, "Most parts of one store request, the data sets of its metadata parts included; more is 413.")
    workitem_max_bytes: int = setting(4 << 20, "Largest workitem payload in bytes; more is 413.")
    requesting_ae: str = setting("GANTRY", "Requesting AE (0074,1236) of a cancel request: a web request names none.")
    fallback_ae_titles: tuple[str, ...] = setting(
        (), "AE titles, separated by commas, that hear of restarts (SCP Status Change) without any subscription, also of those while away."
    )
    websocket_max_connections: int = setting(10_000, "Most open notification connections of one gateway; more is 503.")
    search_max_results: int = setting(1000, "Most results of one search; also the page size without limit.")
    retrieve_max_bytes: int = setting(0, "Most bytes, as stored, that one retrieve may answer with; more is 413; 0: no limit.")
    request_timeout_s: float = setting(30.0, "Seconds that other services have to answer one search, retrieve or change.")
    drain_s: float = setting(10.0, "Seconds that running requests have to end when the gateway stops.")
    record_cache_entries: int = setting(50_000, "Instance records kept for retrieve.")
    metadata_cache_bytes: int = setting(
        32 << 20,
        "Bytes of metadata kept for the next request, which asks index whether they still hold; an eighth of it at most for one; 0: none.",
    )
    rendition_cache_bytes: int = setting(
        32 << 20, "Bytes of transcoded frames and instances kept for the next request, an eighth of it at most for one; 0: none."
    )
