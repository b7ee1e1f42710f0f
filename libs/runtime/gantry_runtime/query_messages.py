"""Translates queries to messages, in the gateway, and back, in index.

Both directions are in one module, so that a field that is missing in one of them is noticed.
"""

from collections.abc import Sequence

from gantry.index.v1 import index_pb2
from gantry_standard import errors
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import MAXIMUM_OFFSET, MatchKey, Operation, Query

LEVELS = {
    Level.STUDY: index_pb2.LEVEL_STUDY,
    Level.SERIES: index_pb2.LEVEL_SERIES,
    Level.INSTANCE: index_pb2.LEVEL_INSTANCE,
}
OPERATIONS = {
    Operation.EQUAL: index_pb2.MatchKey.OPERATION_EQUAL,
    Operation.PATTERN: index_pb2.MatchKey.OPERATION_PATTERN,
    Operation.RANGE: index_pb2.MatchKey.OPERATION_RANGE,
    Operation.ABSENT: index_pb2.MatchKey.OPERATION_ABSENT,
    Operation.ALL: index_pb2.MatchKey.OPERATION_ALL,
}
_LEVEL_OF = {number: level for level, number in LEVELS.items()}
_OPERATION_OF = {number: operation for operation, number in OPERATIONS.items()}


def search_request(query: Query) -> index_pb2.SearchRequest:
    """Return the message of a search for studies, series or instances."""
    return index_pb2.SearchRequest(
        level=LEVELS[query.level],
        scope=index_pb2.Scope(collection=query.collection, series_instance_uid=query.series_instance_uid),
        keys=[_key_message(key) for key in query.keys],
        include_fields=query.include_fields,
        include_all=query.include_all,
        include_levels=[LEVELS[level] for level in query.include_levels],
        offset=query.offset,
        limit=query.limit,
        fuzzy_matching=query.fuzzy_matching,
    )


def search_workitems_request(query: Query, current: bool) -> index_pb2.SearchWorkitemsRequest:
    """Return the message of a search for workitems.

    Args:
        query: the search.
        current: index shall apply all changes of workitems up to now before it searches.
    """
    return index_pb2.SearchWorkitemsRequest(
        keys=[_key_message(key) for key in query.keys],
        include_fields=query.include_fields,
        include_all=query.include_all,
        offset=query.offset,
        limit=query.limit,
        current=current,
    )


def query_of(request: index_pb2.SearchRequest, maximum: int) -> Query:
    """Return the query that a message contains.

    Args:
        request: the message.
        maximum: largest number of rows of one response. It replaces a larger limit, and an absent one.

    Raises:
        errors.BadRequest: the message has no level, or a key that cannot be compared.
        errors.PayloadTooLarge: the offset is beyond `MAXIMUM_OFFSET`.
    """
    if request.level not in _LEVEL_OF:
        raise errors.BadRequest("a search needs a level")
    _check_offset(request.offset)
    return Query(
        level=_LEVEL_OF[request.level],
        collection=request.scope.collection,
        series_instance_uid=request.scope.series_instance_uid,
        keys=tuple(_key_of(key) for key in request.keys),
        include_fields=tuple(request.include_fields),
        include_all=request.include_all,
        include_levels=tuple(_LEVEL_OF[level] for level in request.include_levels),
        offset=request.offset,
        limit=min(request.limit or maximum, maximum),
        fuzzy_matching=request.fuzzy_matching,
    )


def workitem_query_of(request: index_pb2.SearchWorkitemsRequest, maximum: int) -> Query:
    """Return the query that a message contains. Arguments and errors are those of `query_of`."""
    _check_offset(request.offset)
    return Query(
        level=Level.INSTANCE,
        keys=tuple(_key_of(key) for key in request.keys),
        include_fields=tuple(request.include_fields),
        include_all=request.include_all,
        offset=request.offset,
        limit=min(request.limit or maximum, maximum),
    )


def _check_offset(offset: int) -> None:
    if offset > MAXIMUM_OFFSET:
        raise errors.PayloadTooLarge(f"offset is {offset}, at most {MAXIMUM_OFFSET} is possible")


def _key_message(key: MatchKey) -> index_pb2.MatchKey:
    return index_pb2.MatchKey(
        path=key.path,
        operation=OPERATIONS[key.operation],
        values=key.values,
        low=key.low,
        high=key.high,
        private_creator=key.private_creator,
        level=LEVELS[key.level] if key.level is not None else index_pb2.LEVEL_UNSPECIFIED,
    )


def _key_of(key: index_pb2.MatchKey) -> MatchKey:
    is_known = key.operation in _OPERATION_OF
    if not key.path or not is_known or (key.operation == index_pb2.MatchKey.OPERATION_PATTERN and not _is_pattern(key.values)):
        raise errors.BadRequest("a matching key needs a path, an operation and its values")
    return MatchKey(
        path=tuple(key.path),
        operation=_OPERATION_OF[key.operation],
        values=tuple(key.values),
        low=key.low,
        high=key.high,
        private_creator=key.private_creator,
        level=_LEVEL_OF.get(key.level),
    )


def _is_pattern(values: Sequence[str]) -> bool:
    return len(values) == 1 and ("*" in values[0] or "?" in values[0])
