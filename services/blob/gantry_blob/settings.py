"""Settings of blob."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gantry_blob.storing.coercion import load_rules
from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import setting


@dataclass(frozen=True, kw_only=True)
class BlobSettings(ProcessSettings):
    """Settings of gantry-blob."""

    blob_listen: str = setting(
        "127.0.0.1:7001", "HOST:PORT that blob listens on; `,local:PATH` may follow: a socket for processes on this machine."
    )
    blob_admin_listen: str = setting("127.0.0.1:0", "HOST:PORT of blob's metrics and health.")
    index_address: str = setting("127.0.0.1:7002", "HOST:PORT of index, or `local:PATH`.")
    object_store: Literal["directory", "s3"] = setting("directory", "Object store: directory or s3.")
    blob_directory: Path = setting(Path(".gantry/objects"), "Directory of the objects (object store directory).")
    s3_endpoint: str = setting("http://127.0.0.1:9000", "URL of the S3 server.")
    s3_access_key: str = setting("", "Access key of the S3 server.")
    s3_secret_key: str = setting("", "Secret key of the S3 server.")
    s3_bucket: str = setting("gantry", "Bucket of the objects; created if it does not exist.")
    s3_part_bytes: int = setting(8 << 20, "Bytes of an S3 part, at least 5 MiB; an upload holds two in memory.")
    accept_private_sop_classes: bool = setting(True, "Accept instances of private and unknown SOP classes.")
    coercion_rules: Path | None = setting(None, "TOML file of coercion rules (see coercion.py); empty: no coercion.")
    modifying_system: str = setting("GANTRY", "Modifying System (0400,0563) of coerced instances; 1 to 64 ASCII characters.")
    fallback_max_bytes: int = setting(64 << 20, "Largest inconsistent instance that the second reader (pydicom) tries; 0: none.")
    fallback_timeout_s: float = setting(20.0, "Seconds that the second reader may take for one instance.")
    fallback_max_parts: int = setting(
        1000, "Maximum number of instances per store request that the second reader tries; further inconsistent ones fail."
    )
    fallback_budget_s: float = setting(
        60.0, "Seconds for the second reader per store request, including waiting; further inconsistent instances fail."
    )
    fallback_max_waiting: int = setting(
        32, "Maximum number of store requests that use or wait for the second reader; inconsistent instances of further requests fail."
    )
    disk_reserve_percent: float = setting(2.0, "Percentage of the disk that Store leaves free; below it 503 with A700.")
    pack_max_bytes: int = setting(4 << 30, "Bytes after which a pack is closed and the next begins.")
    pack_max_instances: int = setting(1000, "Number of instances after which a pack is closed.")
    pack_max_trailer_bytes: int = setting(16 << 20, "Bytes of trailer after which a pack is closed.")
    store_max_parts: int = setting(
        100_000, "Maximum number of parts of a store request, including the data sets of metadata parts; above it 413."
    )
    scan_max_elements: int = setting(
        2_000_000, "Maximum number of elements, items and fragments of an instance; above it failure reason 0110."
    )
    scan_max_depth: int = setting(64, "Maximum depth of nested sequences; above it failure reason 0110.")
    scan_max_value_bytes: int = setting(64 << 20, "Maximum bytes of values of an instance without bulkdata; above it failure reason 0110.")
    scan_max_inflated_bytes: int = setting(4 << 30, "Maximum bytes of an inflated data set; above it failure reason 0110.")
    concurrent_uploads: int = setting(
        64, "Maximum number of simultaneous store requests; above it the one that waits longest for its client is ended, or 503."
    )
    concurrent_reads: int = setting(512, "Maximum number of simultaneous read calls; above it 503.")
    blob_read_threads: int = setting(16, "Threads that read objects.")
    announce_every_s: float = setting(60.0, "Seconds between checks for packs that index does not know.")
    delete_after_s: float = setting(604_800.0, "Seconds after which the bytes of deleted, replaced and redundant uploads are swept.")
    sweep_every_s: float = setting(600.0, "Seconds between two runs of the sweeper.")
    sweep_settle_s: float = setting(60.0, "Seconds that a pack remains for its readers after its other instances were copied.")
    sweep_trash_s: float = setting(86_400.0, "Seconds that swept packs remain in the trash.")

    def __post_init__(self) -> None:
        """Check the values, and that settings which depend on each other are consistent.

        Raises:
            ValueError: one or more settings are invalid; the message names each of them.
        """
        problems = []
        if self.object_store == "s3" and not (self.s3_access_key and self.s3_secret_key):
            problems.append("GANTRY_OBJECT_STORE=s3: GANTRY_S3_ACCESS_KEY and GANTRY_S3_SECRET_KEY are missing")
        if self.object_store == "s3" and not self.s3_endpoint.startswith(("http://", "https://")):
            problems.append(f"GANTRY_S3_ENDPOINT={self.s3_endpoint}: expected a URL that begins with http:// or https://")
        if not 5 << 20 <= self.s3_part_bytes <= 1 << 30:
            problems.append(f"GANTRY_S3_PART_BYTES={self.s3_part_bytes}: expected 5 MiB to 1 GiB")
        if not 0 <= self.disk_reserve_percent < 100:
            problems.append(f"GANTRY_DISK_RESERVE_PERCENT={self.disk_reserve_percent}: expected 0 to 100")
        if self.coercion_rules is not None:
            try:
                load_rules(self.coercion_rules)
            except ValueError as error:
                problems.append(f"GANTRY_COERCION_RULES: {error}")
        if not re.fullmatch(r"[!-\[\]-~][ -\[\]-~]{0,63}", self.modifying_system):
            problems.append(f"GANTRY_MODIFYING_SYSTEM={self.modifying_system}: expected 1 to 64 characters of ASCII, no backslash")
        if not 0 <= self.fallback_max_bytes <= 1 << 30:
            problems.append(f"GANTRY_FALLBACK_MAX_BYTES={self.fallback_max_bytes}: expected 0 to 1 GiB")
        for name in ("delete_after_s", "sweep_settle_s", "sweep_trash_s"):
            if getattr(self, name) < 0:
                problems.append(f"GANTRY_{name.upper()}={getattr(self, name)}: expected 0 or more")
        for name in (
            "sweep_every_s",
            "concurrent_uploads",
            "concurrent_reads",
            "blob_read_threads",
            "pack_max_instances",
            "announce_every_s",
            "fallback_timeout_s",
            "fallback_budget_s",
            "fallback_max_waiting",
        ):
            if getattr(self, name) <= 0:
                problems.append(f"GANTRY_{name.upper()}={getattr(self, name)}: expected more than 0")
        if problems:
            raise ValueError("\n".join(problems))
