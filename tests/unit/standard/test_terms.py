"""Values as they are compared (PS3.4 §C.2.2.2)."""

import pytest

from gantry_standard import terms


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
