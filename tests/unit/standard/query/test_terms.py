"""Values as they are compared (PS3.4 §C.2.2.2)."""

import pytest

from gantry_standard.query import terms


@pytest.mark.parametrize(
    ("vr", "text", "expected"),
    [
        ("PN", "Möller^Änna^^", "moller^anna"),
        ("DS", "1.50", "1.5"),
        ("IS", "0010", "10"),
        ("TM", "2230", "223000.000000"),
        ("DA", "2024.01.02", "20240102"),
        ("DT", "20240101120000+0100", "20240101110000.000000"),
        ("CS", " CT ", "CT"),
    ],
)
def test_a_value_is_normalised_by_its_vr(vr: str, text: str, expected: str) -> None:
    assert terms.normalise(vr, text) == expected


def test_attributes_of_one_item_share_its_number() -> None:
    items = [
        {"00080100": {"vr": "SH", "Value": ["A"]}, "00080102": {"vr": "SH", "Value": ["X"]}},
        {"00080100": {"vr": "SH", "Value": ["B"]}},
    ]
    found = terms.derive({"00081032": {"vr": "SQ", "Value": items}}).terms
    assert [(term.value, term.item) for term in found] == [("A", 1), ("X", 1), ("B", 2)]


def test_a_private_attribute_is_known_by_its_creator() -> None:
    dataset = {"00230011": {"vr": "LO", "Value": ["Acme"]}, "00231101": {"vr": "IS", "Value": [7]}}
    assert terms.Term("0023xx01:Acme", "7") in terms.derive(dataset).terms


def sequence(*codes: str) -> dict[str, object]:
    return {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": [code]}} for code in codes]}


BASE = {
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]},
    "00080020": {"vr": "DA", "Value": ["20240102"]},
    "00080030": {"vr": "TM", "Value": ["1015"]},
    "00081032": sequence("A", "B"),
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
    "00200013": {"vr": "IS", "Value": [1]},
    "00230011": {"vr": "LO", "Value": ["Acme"]},
    "00231101": {"vr": "IS", "Value": [7]},
    "00400275": sequence("C"),
    "52009230": {"vr": "SQ", "Value": [{"00209111": sequence("D", "D")}, {"00209111": sequence("D", "E")}]},
}
CHANGES: list[dict[str, object]] = [
    {},
    {"00200013": {"vr": "IS", "Value": [2]}},
    {"00200013": {"vr": "LO", "Value": ["1"]}},
    {"00200013": {"vr": "IS", "Value": ["no number"]}},
    {"00080030": {"vr": "TM", "Value": ["1016"]}},
    {"00080020": {"vr": "DA"}},
    {"00081032": sequence("A")},
    {"00081032": sequence("B", "A")},
    {"00230011": {"vr": "LO", "Value": ["Other"]}},
    {"00230010": {"vr": "LO", "Value": ["Acme"]}, "00231001": {"vr": "IS", "Value": [8]}},
    {"52009230": sequence("D")},
]


def test_what_is_remembered_of_the_data_set_before_changes_nothing() -> None:
    for first in CHANGES:
        memory: terms.Memory = {}
        for change in (first, {}, *CHANGES, *reversed(CHANGES)):
            dataset = {**BASE, **change}
            assert terms.derive(dataset, frozenset({"00080008"}), memory=memory) == terms.derive(dataset, frozenset({"00080008"}))


def test_what_is_as_before_is_not_derived_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memory: terms.Memory = {}
    terms.derive(BASE, memory=memory)
    monkeypatch.setattr(terms, "_remembered", lambda vr, text: f"anew {text}")
    anew = [
        term.value for term in terms.derive({**BASE, "00200013": {"vr": "IS", "Value": [2]}}, memory=memory).terms if "anew" in term.value
    ]
    # Of dates only the date itself: it is looked at each time, together with its time.
    assert anew == ["anew 20240102", "anew 2"]


def test_remembered_terms_count_towards_the_most_that_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    memory: terms.Memory = {}
    terms.derive(BASE, memory=memory)
    monkeypatch.setattr(terms, "MAXIMUM_TERMS", 6)
    assert terms.derive(BASE, memory=memory) == terms.derive(BASE)
    assert (len(terms.derive(BASE, memory=memory).terms), terms.derive(BASE, memory=memory).left_out["terms"]) == (6, 8)
