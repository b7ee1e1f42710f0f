"""Settings of workflow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import setting


@dataclass(frozen=True, kw_only=True)
class WorkflowSettings(ProcessSettings):
    """Settings of gantry-workflow."""

    workflow_listen: str = setting("127.0.0.1:7004", "HOST:PORT that workflow listens on; `,local:PATH` may follow.")
    workflow_admin_listen: str = setting("127.0.0.1:0", "HOST:PORT of workflow's metrics and health.")
    blob_address: str = setting("127.0.0.1:7001", "HOST:PORT of blob, or `local:PATH`.")
    workitem_create: Literal["lenient", "strict"] = setting(
        "lenient", "A new workitem without attributes of type 2: lenient adds them empty, with a Warning; strict answers 400."
    )
    deletion_locks: bool = setting(True, "Grant deletion locks to subscribers; false: subscriptions have no lock, with a Warning.")
    workitem_keep_s: float = setting(
        30 * 86_400.0, "Seconds after its last change until a COMPLETED or CANCELED workitem without deletion lock is deleted; 0: never."
    )
    workitem_tombstone_s: float = setting(
        30 * 86_400.0, "Seconds that a deleted workitem answers 410, then 404; must be longer than an outage of index."
    )
    workitem_history_s: float = setting(3600.0, "Seconds that superseded states of workitems remain on the stream.")
    workitem_copy_lag_s: float = setting(
        60.0, "Seconds that the copies of workitems in the object store may lag before workflow reports not ready."
    )
    index_address: str = setting("127.0.0.1:7002", "HOST:PORT of index, or `local:PATH`.")
    workitem_rules: Path | None = setting(
        None, "TOML file of rules that make workitems from arriving studies (see arrivals/rules.py); empty: no rules."
    )
    workitem_rules_url: str = setting(
        "", "DICOMweb root for the Retrieve URLs in these workitems, such as https://host/dicom-web; `gantry up` sets it."
    )
    workitem_rules_quiet_s: str = setting("", "Refused; replaced by `GANTRY_STUDY_SETTLED_S`.")

    def __post_init__(self) -> None:
        """Check settings that depend on each other.

        Raises:
            ValueError: the message names the setting that is wrong.
        """
        if self.workitem_rules_quiet_s:
            raise ValueError(
                "GANTRY_WORKITEM_RULES_QUIET_S: index now decides when a study has settled; set GANTRY_STUDY_SETTLED_S instead"
            )
        if self.workitem_rules is None:
            return
        if not self.workitem_rules_url.startswith(("http://", "https://")):
            raise ValueError("GANTRY_WORKITEM_RULES: GANTRY_WORKITEM_RULES_URL is not set, or does not begin with http:// or https://")
