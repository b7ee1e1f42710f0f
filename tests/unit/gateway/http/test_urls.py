"""URLs in responses, and UIDs of the path."""

import pytest

from gantry_gateway.http import urls
from gantry_standard import errors


def base(*headers: tuple[str, str], public_url: str = "", scheme: str = "http", is_proxy: bool = True) -> str:
    """Return the base URL of a request with these headers."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return urls.base_url({"scheme": scheme, "headers": raw, "server": ("10.0.0.1", 8080)}, "/dicom-web", public_url, lambda _: is_proxy)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([("Host", "pacs:8080")], "http://pacs:8080/dicom-web", id="host"),
        pytest.param([], "http://10.0.0.1:8080/dicom-web", id="no host"),
        pytest.param([("Host", "10.0.0.1")], "http://10.0.0.1:8080/dicom-web", id="our address without our port"),
        pytest.param([("Host", "10.0.0.2")], "http://10.0.0.2/dicom-web", id="another address without a port"),
        pytest.param([("Host", "10.0.0.1"), ("X-Forwarded-Proto", "https")], "https://10.0.0.1/dicom-web", id="our address behind a proxy"),
        pytest.param([("Host", "[::1]:8080")], "http://[::1]:8080/dicom-web", id="IPv6"),
        pytest.param(
            [("Host", "a"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "b:444"), ("X-Forwarded-Prefix", "/x/")],
            "https://b:444/x/dicom-web",
            id="X-Forwarded",
        ),
        pytest.param([("Host", "a"), ("X-Forwarded-Port", "8443"), ("X-Forwarded-Proto", "https")], "https://a:8443/dicom-web", id="port"),
        pytest.param(
            [("Host", "a"), ("X-Forwarded-Port", "443"), ("X-Forwarded-Proto", "https")], "https://a/dicom-web", id="default port"
        ),
        pytest.param([("Host", "a:1"), ("X-Forwarded-Port", "2")], "http://a:1/dicom-web", id="the host has a port"),
        pytest.param([("Host", "[::1]"), ("X-Forwarded-Port", "2")], "http://[::1]:2/dicom-web", id="port of IPv6"),
        pytest.param([("Host", "a"), ("X-Forwarded-Port", "80/x")], "http://a/dicom-web", id="no port"),
        pytest.param([("Host", "a"), ("X-Forwarded-Port", "2"), ("Forwarded", "host=b")], "http://b/dicom-web", id="Forwarded has no port"),
        pytest.param([("Host", "a"), ("X-Forwarded-Host", "first, second")], "http://first/dicom-web", id="two proxies"),
        pytest.param(
            [("Host", "a"), ("Forwarded", 'for=1.2.3.4;Proto=HTTPS;host="h:1", host=other'), ("X-Forwarded-Host", "b")],
            "https://h:1/dicom-web",
            id="Forwarded wins",
        ),
        pytest.param([("Host", "a"), ("X-Forwarded-Proto", "javascript")], "http://a/dicom-web", id="no scheme of ours"),
        pytest.param([("Host", "a"), ("X-Forwarded-Host", "b/evil?x=")], "http://a/dicom-web", id="no authority"),
        pytest.param([("Host", 'a"><script>')], "http://10.0.0.1:8080/dicom-web", id="host that is none"),
        pytest.param([("Host", "a"), ("X-Forwarded-Prefix", '/a"b')], "http://a/dicom-web", id="prefix that is none"),
        pytest.param([("Host", "a"), ("X-Forwarded-Prefix", "/x/y..z/.w/")], "http://a/x/y..z/.w/dicom-web", id="prefix with dots"),
        pytest.param([("Host", "a:b:c")], "http://10.0.0.1:8080/dicom-web", id="host with two ports"),
        pytest.param([("Host", "a" * 256)], "http://10.0.0.1:8080/dicom-web", id="long host"),
        pytest.param([("Host", "a"), ("X-Forwarded-Host", "b" * 60_000)], "http://a/dicom-web", id="long forwarded host"),
    ],
)
def test_base_url_is_as_the_client_sees_it(headers: list[tuple[str, str]], expected: str) -> None:
    assert base(*headers) == expected


@pytest.mark.parametrize(
    "prefix",
    [
        "//evil",
        "//evil/",
        "/x//evil",
        "../..",
        "/../..",
        "/x/../y",
        "/x/..",
        "/x/./y",
        "/.",
        "x",
        "/",
        "/%2e%2e",
        "/" + "x" * 256,
        "/x" * 17,
    ],
)
def test_a_prefix_that_leads_elsewhere_is_ignored(prefix: str) -> None:
    assert base(("Host", "a"), ("X-Forwarded-Prefix", prefix)) == "http://a/dicom-web"


def test_forwarding_headers_of_others_than_proxies_are_ignored() -> None:
    assert base(("Host", "a"), ("Forwarded", "proto=https;host=b"), is_proxy=False) == "http://a/dicom-web"
    forged = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "b"), ("X-Forwarded-Port", "1"), ("X-Forwarded-Prefix", "/x")]
    for name, value in forged:
        assert base(("Host", "a"), (name, value), is_proxy=False) == "http://a/dicom-web"
    assert base(("Host", "10.0.0.1"), *forged, is_proxy=False) == "http://10.0.0.1:8080/dicom-web"


def test_public_url_wins() -> None:
    assert base(("Host", "a"), ("Forwarded", "host=b"), public_url="https://pacs.example/") == "https://pacs.example/dicom-web"


def test_resources_have_their_urls() -> None:
    assert urls.study("b", "1") == "b/studies/1"
    assert urls.series("b", "1", "2") == "b/studies/1/series/2"
    assert urls.instance("b", "1", "2", "3") == "b/studies/1/series/2/instances/3"
    assert urls.workitem("b", "4") == "b/workitems/4"


@pytest.mark.parametrize("uid", ["1.2.840", "2.25.0", "1.02.3", "9", "1" * 64])
def test_uid_of_the_path_is_taken(uid: str) -> None:
    assert urls.uid({"study": uid}, "study") == uid


@pytest.mark.parametrize("uid", ["abc", "1..2", ".1", "1.", "1.2 ", "1" * 65, "1.2\n", "*", "１.２"])
def test_what_is_no_uid_is_refused_without_repeating_it(uid: str) -> None:
    with pytest.raises(errors.BadRequest, match="the study of the path is no UID"):
        urls.uid({"study": uid}, "study")


def test_absent_uid_is_empty() -> None:
    assert urls.uid({}, "series") == ""
