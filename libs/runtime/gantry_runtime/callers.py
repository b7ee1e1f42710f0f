"""The caller: who makes a request, and which studies they may see.

The gateway's `Access` decides who the caller is. The caller travels with each call to the other services (`call_context`), which restrict
the data that they return. Today every caller is `ANONYMOUS`, who may do everything (docs/decisions/0125-callers.md).
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MOST_VISIBLE_STUDIES = 1000
"""Largest number of studies that a restricted caller may see. The list travels with each call and is a condition of each query."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request.

    Attributes:
        subject: a stable name of the person or program; "" if it is not known.
        ae_title: of the application; "" if it has none.
        roles: names whose meaning the operator defines.
        visible_studies: Study Instance UIDs of the studies that the caller may see; None if there is no restriction.

    Raises:
        ValueError: there are more than `MOST_VISIBLE_STUDIES` studies.
    """

    subject: str = ""
    ae_title: str = ""
    roles: tuple[str, ...] = ()
    visible_studies: frozenset[str] | None = None

    def __post_init__(self) -> None:
        """Check the number of studies."""
        if self.visible_studies is not None and len(self.visible_studies) > MOST_VISIBLE_STUDIES:
            raise ValueError(f"a caller may see {len(self.visible_studies)} studies by name, expected at most {MOST_VISIBLE_STUDIES}")

    @property
    def is_restricted(self) -> bool:
        """Whether the caller may see only some studies."""
        return self.visible_studies is not None

    def may_see(self, study_instance_uid: str) -> bool:
        """Return whether the caller may see a study. The study need not exist."""
        return self.visible_studies is None or study_instance_uid in self.visible_studies

    def may_see_referrer(self, study_instance_uids: Collection[str]) -> bool:
        """Return whether the caller may see a resource that refers to these studies, such as a workitem.

        A restricted caller may see it if it refers to at least one study, and only to visible studies.
        """
        if self.visible_studies is None:
            return True
        return bool(study_instance_uids) and self.visible_studies.issuperset(study_instance_uids)


ANONYMOUS = Caller()
"""The caller of a request without a named caller. It may do everything."""


def encoded(caller: Caller) -> bytes:
    """Return a caller as ASCII bytes without line feeds; b"" for ANONYMOUS."""
    if caller == ANONYMOUS:
        return b""
    visible = None if caller.visible_studies is None else sorted(caller.visible_studies)
    return json.dumps([caller.subject, caller.ae_title, caller.roles, visible], separators=(",", ":")).encode("ascii")


def decoded(data: bytes) -> Caller:
    """Return the caller that `encoded` wrote.

    Raises:
        ValueError: the bytes are not a caller. They must not be treated as ANONYMOUS.
    """
    if not data:
        return ANONYMOUS
    fields: Any = json.loads(data)
    if not isinstance(fields, list) or len(fields) != 4:
        raise ValueError("a caller has four fields")
    subject, ae_title, roles, visible = fields
    if not isinstance(roles, list) or not isinstance(visible, list | None):
        raise ValueError("roles and studies of a caller are lists")
    return Caller(str(subject), str(ae_title), tuple(map(str, roles)), None if visible is None else frozenset(map(str, visible)))
