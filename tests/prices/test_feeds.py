"""Fetching feeds: from a file, over HTTP against a server on this machine, and from the installed package."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.prices.kit import NOW, Answer, Server, model, provider
from token_meter.errors import InvalidPrices
from token_meter.prices import Price, feeds
from token_meter.prices.feeds import BYTES_MAX, REDIRECTS_MAX, Fetched, fetch, fetch_second, shown
from token_meter.prices.stated import SecondKey

PROVIDERS = [provider("openai", model("gpt-5", {"input_mtok": 1.25, "output_mtok": 10}))]
BODY = json.dumps(PROVIDERS).encode()


ANSWERS = {
    "/feed": Answer(200, BODY, {"ETag": '"one"'}),
    "/zipped": Answer(200, gzip.compress(BODY), {"Content-Encoding": "gzip"}),
    "/feed.json.gz": Answer(200, gzip.compress(BODY)),
    "/same": Answer(304),
    "/gone": Answer(404, b"no"),
    "/moved": Answer(302, b"", {"Location": "/feed"}),
    "/elsewhere": Answer(302, b"", {"Location": "ftp://127.0.0.1/feed"}),
    "/round": Answer(302, b"", {"Location": "/round"}),
    "/bomb": Answer(200, gzip.compress(b" " * (BYTES_MAX + 1)), {"Content-Encoding": "gzip"}),
    "/large": Answer(200, b" " * (BYTES_MAX + 1)),
    "/cut": Answer(200, gzip.compress(BODY)[:-9], {"Content-Encoding": "gzip"}),
    "/noise": Answer(200, BODY, {"Content-Encoding": "gzip"}),
    "/page": Answer(200, b"<html>"),
    "/empty": Answer(200, b""),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(ANSWERS)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def rows(fetched: Fetched) -> list[Price]:
    assert fetched.feed is not None
    return [price for each in fetched.feed.models for price in each.prices]


def price(token_type: str, amount: str, version: str) -> Price:
    return Price(
        provider="openai", model="gpt-5", token_type=token_type, amount=Decimal(amount), per=1_000_000,
        recorded_at=NOW, publisher="openai", display_name="GPT-5", source=f"genai-prices {version}",
    )  # fmt: skip


@pytest.mark.parametrize("text", [json.dumps(PROVIDERS), json.dumps({"providers": PROVIDERS})])
def test_a_file_is_read_without_making_a_float(tmp_path: Path, text: str) -> None:
    path = tmp_path / "feed.json"
    path.write_text(text)

    fetched = fetch(str(path), now=NOW)

    assert rows(fetched) == [price("input", "1.25", fetched.version), price("output", "10", fetched.version)]
    assert (fetched.source, fetched.etag, fetched.unchanged, len(fetched.version)) == (str(path), None, False, 12)


def test_the_version_names_the_content(tmp_path: Path) -> None:
    for name, text in (("a", "[]"), ("b", "[]"), ("c", "[ ]")):
        (tmp_path / name).write_text(text)

    versions = [fetch(str(tmp_path / name), now=NOW).version for name in "abc"]

    assert versions[0] == versions[1] != versions[2]


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "feed.json.gz"
    path.write_bytes(gzip.compress(BODY))

    fetched = fetch(str(path), now=NOW)

    assert [each.amount for each in rows(fetched)] == [Decimal("1.25"), 10]


@pytest.mark.parametrize("path", ["/feed", "/zipped", "/feed.json.gz", "/moved"])
def test_a_url_is_read(server: Server, path: str) -> None:
    fetched = fetch(server.url + path, now=NOW)

    assert rows(fetched) == [price("input", "1.25", fetched.version), price("output", "10", fetched.version)]
    assert fetched.source == server.url + path


def test_an_etag_comes_back_and_is_sent(server: Server) -> None:
    first = fetch(f"{server.url}/feed", now=NOW)
    again = fetch(f"{server.url}/same", now=NOW, etag=first.etag)

    assert first.etag == '"one"'
    assert server.requests[-1][1]["if-none-match"] == '"one"'
    assert again == Fetched(None, f"{server.url}/same", '"one"', '"one"', unchanged=True)


def test_a_password_is_sent_and_never_shown(server: Server) -> None:
    fetched = fetch(f"http://me:secret@{server.netloc}/feed?key=also", now=NOW)

    assert server.requests[-1][1]["authorization"] == f"Basic {b64encode(b'me:secret').decode()}"
    assert fetched.source == f"{server.url}/feed"


def test_no_password_is_looked_for_elsewhere(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    fetch(f"{server.url}/feed", now=NOW)

    assert "authorization" not in server.requests[-1][1]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/gone", "{url}/gone answers HTTP 404"),
        ("/same", "{url}/same answers HTTP 304"),
        ("/elsewhere", "{url}/elsewhere redirects to another scheme: name ftp://127.0.0.1/feed yourself"),
        ("/round", f"{{url}}/round redirects more than {REDIRECTS_MAX} times"),
        ("/bomb", f"{{url}}/bomb is larger than {BYTES_MAX:,} bytes"),
        ("/large", f"{{url}}/large is larger than {BYTES_MAX:,} bytes"),
        ("/cut", "{url}/cut is damaged: it ends too early"),
        ("/noise", "{url}/noise is damaged: it cannot be decompressed"),
        ("/page", "{url}/page is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("/empty", "{url}/empty is no JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_what_cannot_be_had_says_why(server: Server, path: str, said: str) -> None:
    with pytest.raises(InvalidPrices) as refused:
        fetch(server.url + path, now=NOW)

    assert str(refused.value) == said.format(url=server.url)


def test_a_server_that_is_not_there_says_so(server: Server) -> None:
    gone = Server({})
    gone.close()

    with pytest.raises(InvalidPrices) as refused:
        fetch(f"{gone.url}/feed", now=NOW)

    assert str(refused.value) == f"cannot get prices from {gone.url}/feed: ConnectionError"


def test_a_server_that_drips_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "TOTAL_SECONDS", 0.0)

    with pytest.raises(InvalidPrices, match="takes longer than 0 s"):
        fetch(f"{server.url}/feed", now=NOW)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", 'is no price feed: it is a list of providers, or {"providers": [...]}'),
        (b'{"providers": 1}', 'is no price feed: it is a list of providers, or {"providers": [...]}'),
        (b"[1]", "this is no price feed of genai-prices (TypeError("),
        (b'[{"id": "a", "models": [{"id": "b"}]}]', "this is no price feed of genai-prices (KeyError('match'))"),
        (b"[NaN]", "is no JSON: NaN is no number"),
        (b"[" * 100_000, "is no JSON: "),
        (b"\xff", "is no JSON: "),
        (gzip.compress(b" " * (BYTES_MAX + 1)), f"is larger than {BYTES_MAX:,} bytes"),
        (b" " * (BYTES_MAX + 1), f"is larger than {BYTES_MAX:,} bytes"),
        (
            json.dumps([provider("openai", model("gpt-5", {"input_mtok": "1e99"}))]).encode(),
            "a price of the feed has more than 40 digits",
        ),
    ],
)
def test_a_file_that_is_no_feed_says_so(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "feed"
    path.write_bytes(content)

    with pytest.raises(InvalidPrices) as refused:
        fetch(str(path), now=NOW)

    assert str(refused.value).startswith(str(path)) and said in str(refused.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.json", "cannot read the prices in nowhere.json: No such file or directory"),
        ("ftp://me:secret@host/feed", "ftp://host/feed: prices come from a file, an http or https URL, or 'installed'"),
    ],
)
def test_a_source_that_is_none_says_so(source: str, said: str) -> None:
    with pytest.raises(InvalidPrices) as refused:
        fetch(source, now=NOW)

    assert str(refused.value) == said


def test_the_installed_package_is_a_feed() -> None:
    installed = pytest.importorskip("importlib.metadata").version(pytest.importorskip("genai_prices").__name__)

    fetched = fetch(now=NOW)

    assert (fetched.source, fetched.version, fetched.etag) == ("installed", installed, None)
    assert len(rows(fetched)) > 1_000
    assert {each.source for each in rows(fetched)} == {f"genai-prices {installed}"}


def test_a_second_source_is_a_feed_or_the_map_of_litellm(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(
        json.dumps(
            {"sample_spec": {}, "openai/gpt-5": {"litellm_provider": "openai", "input_cost_per_token": 1.25e-06}}
        )
    )

    first, other = fetch_second(f"{server.url}/feed", now=NOW), fetch_second(str(path), now=NOW)

    assert (first.name, first.amounts) == (
        f"{server.url}/feed",
        {SecondKey("openai", "gpt-5", "input", (), None): Decimal("1.25"), SecondKey("openai", "gpt-5", "output", (), None): 10},
    )  # fmt: skip
    assert (other.name, other.amounts) == (
        str(path),
        {SecondKey("openai", "gpt-5", "input", (), None): Decimal("1.25")},
    )


def test_a_source_is_shown_without_what_is_secret() -> None:
    assert shown("https://me:secret@host:8443/feed.json?token=x#y") == "https://host:8443/feed.json"
    assert shown("prices/feed.json") == "prices/feed.json"


def test_importing_it_loads_nothing_and_asks_nobody() -> None:
    code = "import sys, token_meter.prices.feeds; print('requests' in sys.modules, 'genai_prices' in sys.modules)"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout == "False False\n"
