"""What one value of each VR of text looks like: for whatever is written or taken as a value, and what searches read besides.

Forms are of values without padding, as text: characters that a character set cannot hold are not looked at. An empty value has no form: an
attribute may be without a value. Digits are 0 to 9 and no others, so `\\d` is not used: it takes the digits of every script.

Source: PS3.5 §6.2, Table 6.2-1; PS3.18 Table F.2.3-1 for AT as text.
"""

import re

_TEXT = r"[^\\\x00-\x1a\x1c-\x1f\x7f]"
"""One character of a text of one line: no backslash, no control character but ESC."""
_LONG_TEXT = r"[^\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]"
"""One character of a text of several lines: also a backslash, tab, line feed, form feed, carriage return."""
_YEAR, _MONTH, _DAY = "[0-9]{4}", "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
_HOUR, _MINUTE, _SECOND = "(?:[01][0-9]|2[0-3])", "[0-5][0-9]", r"(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?"
_OFFSET = "[+-](?:0[0-9]|1[0-4])[0-5][0-9]"

PERSON_NAME_GROUP = re.compile(rf"(?:(?!=){_TEXT}){{0,64}}")
"""One component group of a PN."""

VALUE_FORMS: dict[str, re.Pattern[str]] = {
    vr: re.compile(form)
    for vr, form in {
        "AE": r"(?! +$)[ -\[\]-~]{1,16}",
        "AS": "[0-9]{3}[DWMY]",
        "AT": "[0-9A-Fa-f]{8}",
        "CS": "[A-Z0-9 _]{1,16}",
        "DA": f"{_YEAR}{_MONTH}{_DAY}",
        "DS": r"(?=.{1,16}$) *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *",
        # Components may be missing from the right only.
        "DT": f"{_YEAR}(?:{_MONTH}(?:{_DAY}(?:{_HOUR}(?:{_MINUTE}(?:{_SECOND})?)?)?)?)?(?:{_OFFSET})?",
        "IS": "(?=.{1,12}$) *[+-]?[0-9]+ *",
        "LO": rf"{_TEXT}{{1,64}}",
        "LT": rf"{_LONG_TEXT}{{1,10240}}",
        "PN": rf"{PERSON_NAME_GROUP.pattern}(?:={PERSON_NAME_GROUP.pattern}){{0,2}}",
        "SH": rf"{_TEXT}{{1,16}}",
        "ST": rf"{_LONG_TEXT}{{1,1024}}",
        "TM": f"{_HOUR}(?:{_MINUTE}(?:{_SECOND})?)?",
        "UC": rf"{_TEXT}+",
        # 64 characters; leading zeros of a component are wrong, but too frequent to refuse (`uids`).
        "UI": r"(?=.{1,64}$)[0-9]+(?:\.[0-9]+)*",
        # The characters of a URI (RFC 3986 §2); spaces follow as padding only.
        "UR": r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+ *",
        "UT": rf"{_LONG_TEXT}+",
    }.items()
}

READ_DATE = re.compile(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})")
READ_TIME = re.compile(r"([0-9]{2}):?(?:([0-9]{2}):?(?:([0-9]{2})(\.[0-9]{1,6})?)?)?")
READ_DATE_TIME = re.compile(
    r"([0-9]{4})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(\.[0-9]{1,6})?)?)?)?)?)?([+-][0-9]{4})?"
)
"""What searches read as DA, TM and DT, with a group for each component: also the forms of ACR-NEMA, YYYY.MM.DD and HH:MM:SS, which old
archives hold (PS3.5 §6.2, notes). Ranges of the components are checked by the reader."""


def has_form(vr: str, value: str) -> bool:
    """Say whether a text can be one value of a VR; an empty one can, and whatever there is of a VR without a form."""
    form = VALUE_FORMS.get(vr)
    return not value or form is None or form.fullmatch(value) is not None
