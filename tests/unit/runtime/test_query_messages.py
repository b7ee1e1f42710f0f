"""A query passes from gateway to index unchanged."""

import pytest

from gantry.index.v1 import index_pb2
from gantry_runtime import query_messages
from gantry_standard import errors
from gantry_standard.query.levels import Level
from gantry_standard.query.matching import MAXIMUM_OFFSET, MatchKey, Operation, Query

KEYS = (
    MatchKey(("00080020",), Operation.RANGE, low="20200101", high="20201231", level=Level.STUDY),
    MatchKey(("00100010",), Operation.PATTERN, ("DOE*",)),
    MatchKey(("00400275", "00080050"), Operation.EQUAL, ("A1", "A2"), level=Level.SERIES),
    MatchKey(("00091001",), Operation.ABSENT, private_creator="ACME"),
    MatchKey(("00080060",), Operation.ALL, ("CT",)),
)


@pytest.mark.parametrize("level", Level)
def test_a_query_arrives_as_it_was_sent(level: Level) -> None:
    query = Query(
        level=level,
        collection="1.2",
        series_instance_uid="1.2.3",
        keys=KEYS,
        include_fields=("00080090",),
        include_all=True,
        include_levels=(Level.SERIES,),
        offset=7,
        limit=20,
        fuzzy_matching=True,
    )
    assert query_messages.query_of(query_messages.search_request(query), 1000) == query


def test_a_query_for_workitems_arrives_as_it_was_sent() -> None:
    query = Query(level=Level.INSTANCE, keys=KEYS, include_fields=("00741204",), include_all=True, offset=7, limit=20)
    message = query_messages.search_workitems_request(query, current=True)
    assert message.current
    assert query_messages.workitem_query_of(message, 1000) == query


@pytest.mark.parametrize(("asked", "limit"), [(0, 50), (10, 10), (51, 50)])
def test_a_limit_is_never_above_the_maximum(asked: int, limit: int) -> None:
    assert query_messages.query_of(query_messages.search_request(Query(Level.STUDY, limit=asked)), 50).limit == limit


def test_every_level_and_operation_has_a_number() -> None:
    assert set(query_messages.LEVELS) == set(Level)
    assert set(query_messages.OPERATIONS) == set(Operation)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(errors.BadRequest):
        query_messages.query_of(index_pb2.SearchRequest(), 10)
    for key in (
        index_pb2.MatchKey(operation=index_pb2.MatchKey.OPERATION_EQUAL, values=["x"]),
        index_pb2.MatchKey(path=["00100010"], values=["x"]),
        index_pb2.MatchKey(path=["00100010"], operation=index_pb2.MatchKey.OPERATION_PATTERN, values=["no wildcard"]),
    ):
        with pytest.raises(errors.BadRequest):
            query_messages.workitem_query_of(index_pb2.SearchWorkitemsRequest(keys=[key]), 10)
    with pytest.raises(errors.PayloadTooLarge):
        query_messages.workitem_query_of(index_pb2.SearchWorkitemsRequest(offset=MAXIMUM_OFFSET + 1), 10)
