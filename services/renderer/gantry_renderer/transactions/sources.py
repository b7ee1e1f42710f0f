"""The instances that one rendering is made of."""

from collections.abc import Iterable
from dataclasses import dataclass

from gantry.renderer.v1 import renderer_pb2
from gantry_renderer.transactions.instances import Instance, Key
from gantry_standard import errors
from gantry_standard.dicom.content_kinds import ContentKind, content_kind

MOST_SOURCES = 64
"""Sources of one request."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a request by their roles.

    Attributes:
        subject: the instance that the request names.
        referenced: instances that the subject refers to, in the order of the request.
        presentations: presentation states that say how the subject is shown, in the order of the request.
    """

    subject: Instance
    referenced: tuple[Instance, ...] = ()
    presentations: tuple[Instance, ...] = ()

    @property
    def kind(self) -> ContentKind:
        """The kind of content of the subject."""
        return content_kind(self.subject.sop_class_uid, self.subject.transfer_syntax_uid)

    @property
    def key(self) -> tuple[tuple[Key, ...], tuple[Key, ...], tuple[Key, ...]]:
        """Names the versions of all sources, for caches."""
        return (self.subject.key,), tuple(one.key for one in self.referenced), tuple(one.key for one in self.presentations)


def parse_sources(messages: Iterable[renderer_pb2.Source]) -> Sources:
    """Return the sources of a request, checked.

    Raises:
        BadRequest: there is not exactly one subject, there are more than MOST_SOURCES, or one has no location.
    """
    by_role: dict[int, list[Instance]] = {}
    for number, message in enumerate(messages, 1):
        if number > MOST_SOURCES:
            raise errors.BadRequest(f"the request has more than {MOST_SOURCES} sources")
        by_role.setdefault(message.role or renderer_pb2.SOURCE_ROLE_SUBJECT, []).append(Instance(message))
    subjects = by_role.pop(renderer_pb2.SOURCE_ROLE_SUBJECT, [])
    referenced = by_role.pop(renderer_pb2.SOURCE_ROLE_REFERENCED, [])
    presentations = by_role.pop(renderer_pb2.SOURCE_ROLE_PRESENTATION, [])
    if len(subjects) != 1 or by_role:
        raise errors.BadRequest(f"the request has {len(subjects)} subjects and {sum(map(len, by_role.values()))} sources of unknown role")
    return Sources(subjects[0], tuple(referenced), tuple(presentations))
