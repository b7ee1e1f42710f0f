"""What workflow can be told."""

from dataclasses import dataclass
from typing import Literal

from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import setting


@dataclass(frozen=True, kw_only=True)
class WorkflowSettings(ProcessSettings):
    """Settings of gantry-workflow."""

    workflow_listen: str = setting("127.0.0.1:7004", "HOST:PORT that workflow listens on.")
    workflow_admin_listen: str = setting("127.0.0.1:0", "HOST:PORT of workflow's metrics and health.")
    blob_address: str = setting("127.0.0.1:7001", "HOST:PORT of blob.")
    workitem_create: Literal["lenient", "strict"] = setting(
        "lenient", "A new workitem that lacks attributes of type 2: lenient adds them empty, with a Warning; strict answers 400."
    )
    deletion_locks: bool = setting(True, "Grant deletion locks to subscribers; else subscriptions are made without, with a Warning.")
    workitem_keep_s: float = setting(
        30 * 86_400.0, "Seconds after its last change that a COMPLETED or CANCELED workitem without deletion locks is deleted; 0: never."
    )
    workitem_tombstone_s: float = setting(
        30 * 86_400.0, "Seconds that a deleted workitem answers 410, then 404; longer than index may be away."
    )
    workitem_history_s: float = setting(3600.0, "Seconds that superseded states of workitems are kept on the stream.")
