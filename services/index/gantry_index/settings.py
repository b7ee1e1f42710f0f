"""Settings of index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import setting


@dataclass(frozen=True, kw_only=True)
class IndexSettings(ProcessSettings):
    """Settings of index."""

    index_store: Literal["sqlite", "elasticsearch"] = setting("sqlite", "Index store: sqlite or elasticsearch.")
    index_directory: Path = setting(Path(".gantry/index"), "Directory of the SQLite files.")
    elasticsearch_url: str = setting("http://127.0.0.1:9200", "Elasticsearch, or several nodes separated by commas.")
    elasticsearch_prefix: str = setting("gantry", "Prefix of the names of all Elasticsearch indices.")
    index_listen: str = setting("127.0.0.1:7002", "HOST:PORT of index's gRPC; `,local:PATH` may follow.")
    index_admin_listen: str = setting("127.0.0.1:7102", "HOST:PORT of index's /metrics and /healthz.")
    blob_address: str = setting("127.0.0.1:7001", "HOST:PORT of blob, or `local:PATH`.")
    on_duplicate: Literal["reject", "replace"] = setting(
        "reject", "Other content under an existing SOP Instance UID: reject (failure reason 0111H) or replace."
    )
    index_search_maximum: int = setting(10_000, "Maximum number of rows of a search, whatever limit the request has.")
    index_current_timeout_s: float = setting(3.0, "Seconds that a worklist search with no-cache waits until index has read the stream.")
    study_settled_s: float = setting(
        30.0, "Seconds without an upload after which a study has settled and rules are tried on it; 0.1 to 86400."
    )
    index_sqlite_readers: int = setting(4, "Number of threads that read SQLite.")

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        if not 1 <= self.index_search_maximum <= 10_000:
            raise ValueError(f"GANTRY_INDEX_SEARCH_MAXIMUM={self.index_search_maximum}: expected 1 to 10000")
        if not 0.1 <= self.study_settled_s <= 86_400:
            raise ValueError(f"GANTRY_STUDY_SETTLED_S={self.study_settled_s}: expected 0.1 to 86400")
