"""Settings of the renderer."""

from dataclasses import dataclass
from pathlib import Path

from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import setting


@dataclass(frozen=True, kw_only=True)
class RendererSettings(ProcessSettings):
    """Settings of gantry-renderer."""

    renderer_listen: str = setting("127.0.0.1:7003", "HOST:PORT that the renderer listens on; `,local:PATH` may follow.")
    renderer_admin_listen: str = setting("127.0.0.1:0", "HOST:PORT of the renderer's metrics and health.")
    renderer_workers: int = setting(0, "Processes that decode and render; 0: one per core.")
    renderer_queue: int = setting(
        64, "Maximum number of requests that wait for a process, for renderings and for streams each; above it 503."
    )
    renderer_cache_bytes: int = setting(128 << 20, "Bytes of the cache of rendered and transcoded frames.")
    render_timeout_s: float = setting(30.0, "Seconds for one frame in a process; after that the process is replaced.")
    image_max_bytes: int = setting(64 << 20, "Maximum bytes of a PNG or GIF file in a store request; above it failure reason 0110.")
    image_max_decoded_bytes: int = setting(512 << 20, "Maximum bytes of its decoded frames; above it failure reason 0110.")
    blob_address: str = setting("127.0.0.1:7001", "HOST:PORT of blob, or `local:PATH`.")
    blob_directory: Path | None = setting(
        None, "Directory of the objects, if this renderer shares it with blob: files are mapped instead of streamed."
    )

    def __post_init__(self) -> None:
        if self.renderer_workers < 0 or self.renderer_queue < 1 or self.renderer_cache_bytes < 0 or self.render_timeout_s <= 0:
            raise ValueError("GANTRY_RENDERER_WORKERS and _CACHE_BYTES must be 0 or more, _QUEUE and GANTRY_RENDER_TIMEOUT_S above 0")
