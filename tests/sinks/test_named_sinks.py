"""Sinks by name: this package's and others', with options that are texts, from a command line or the environment."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from token_meter import Meter, Usage
from token_meter.sinks import AmberfloSink, LagoSink, OpenMeterSink, StripeSink, WebhookSink
from token_meter.sinks.base import sink_name
from token_meter.sinks.named import known_names, named_sink, named_sinks, read_options
from token_meter.testing.backends import FakeLago, FakeOpenMeter

ENVIRONMENT = {
    "STRIPE_API_KEY": "sk_test_1",
    "TOKEN_METER_WEBHOOK_URL": "https://receiver.example/usage",
    "TOKEN_METER_WEBHOOK_SECRET": "whsec_c2VjcmV0",
}

MODULE = """
class Orb:
    name = "orb"
    def __init__(self, account: str = "main", *, plan: "str | None" = None, retries: int = 3, name: str = "orb",
                 api_key: str = ""):
        self.account, self.plan, self.name = account, plan, name
    def send(self, events): ...

def no_sink():
    return object()
"""

POINTS = """
[token_meter.sinks]
orb = {module}:Orb
nothing = {module}:no_sink
gone = {module}:Gone
absent = {module}_that_is_not_there:Orb
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the backends need, and nothing of ours besides; in an empty folder."""
    for name in ("TOKEN_METER_SINKS", "TOKEN_METER_LEDGER", "TOKEN_METER_JOURNAL", "TOKEN_METER_DIMENSIONS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that somebody else has written, installed in a folder of its own."""
    folder = tmp_path / "site"
    module = f"orb_for_{tmp_path.name.replace('-', '_')}"
    metadata = folder / "orb_sink-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: orb-sink\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(POINTS.format(module=module))
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield module
    sys.modules.pop(module, None)


def test_this_packages_backends_are_known_by_name() -> None:
    made = {kind: named_sink(kind, {}) for kind in ("amberflo", "lago", "openmeter", "stripe", "webhook")}

    assert {kind: type(sink) for kind, sink in made.items()} == {
        "amberflo": AmberfloSink,
        "lago": LagoSink,
        "openmeter": OpenMeterSink,
        "stripe": StripeSink,
        "webhook": WebhookSink,
    }
    assert known_names() == ["amberflo", "lago", "openmeter", "opentelemetry", "stripe", "webhook"]


def test_a_name_that_nobody_knows_is_none() -> None:
    assert named_sink("orb", {}) is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("stripe", {"api": "v1", "base_url": "https://stripe.example", "mode": "test"}),
        ("lago", {"base_url": "https://lago.example", "customers": "same", "mode": "test", "unattributed": "house"}),
        ("amberflo", {"template": "llm", "ingest_url": "https://in.example", "api_url": "https://api.example"}),
        ("openmeter", {"base_url": "https://openmeter.example", "event_type": "llm", "source": "here"}),
        ("webhook", {"url": "https://receiver.example", "source": "here"}),
    ],
)
def test_options_that_are_texts_can_be_given(kind: str, options: dict[str, str]) -> None:
    sink = named_sink(kind, options, name="mine")

    assert sink is not None
    assert sink_name(sink) == "mine"
    assert getattr(sink, "mode", options.get("mode", "live")) == options.get("mode", "live")


def test_an_option_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        ValueError, match=r"the sink 'lago' has no option 'url'\. It has: base_url, customers, mode, name, "
    ):
        named_sink("lago", {"url": "https://lago.example"})
    for option in ("mapping", "where", "codes", "dimensions"):
        with pytest.raises(ValueError, match=f"has no option '{option}'"):
            named_sink("lago", {option: "x"})


def test_an_option_with_a_wrong_value_is_refused_by_the_sink() -> None:
    with pytest.raises(ValueError, match="template must be 'token_types' or 'llm', not 'gpt'"):
        named_sink("amberflo", {"template": "gpt"})
    with pytest.raises(ValueError, match="customers must be 'registered', 'same', a mapping or a function, not 'all'"):
        named_sink("lago", {"customers": "all"})


@pytest.mark.parametrize(
    ("kind", "option"),
    [("lago", "api_key"), ("stripe", "webhook_secret"), ("webhook", "secret"), ("lago", "token"), ("lago", "password")],
)
def test_secrets_are_refused_and_not_repeated(kind: str, option: str) -> None:
    """Whoever lists the processes of a machine reads command lines."""
    with pytest.raises(
        ValueError, match=f"{option} does not belong on a command line: set the environment variable"
    ) as caught:
        named_sink(kind, {option: "sk_live_very_secret"})

    assert "very_secret" not in str(caught.value)


# ---- others' packages ----


def test_a_package_brings_its_sink_as_an_entry_point(package: str) -> None:
    sink = named_sink("orb", {"account": "eu", "plan": "gold"}, name="second")

    assert sink is not None
    assert (type(sink).__name__, sink.account, sink.plan, sink_name(sink)) == ("Orb", "eu", "gold", "second")  # type: ignore[attr-defined]
    assert "orb" in known_names()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("orb", {"retries": "5"}, "has no option 'retries'. It has: account, name, plan"),
        ("orb", {"api_key": "secret"}, "api_key does not belong on a command line"),
        ("nothing", {}, r"what is registered as 'nothing' makes no sink: it has no send\(events\)"),
        ("gone", {}, "cannot load the sink 'gone' .*: .*has no attribute 'Gone'"),
        ("absent", {}, "cannot load the sink 'absent' .*No module named"),
    ],
)
def test_what_is_wrong_with_anothers_sink_is_told(package: str, kind: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        named_sink(kind, options)


def test_names_of_this_package_cannot_be_taken_over(package: str, tmp_path: Path) -> None:
    points = tmp_path / "site" / "orb_sink-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[token_meter.sinks]\nlago = {package}:Orb\n")
    importlib.invalidate_caches()

    assert isinstance(named_sink("lago", {}), LagoSink)


# ---- several in one text ----


def test_several_are_named_in_one_text() -> None:
    sinks = named_sinks(" stripe, lago:mode=test ,customers=same, second=lago:base_url=http://127.0.0.1:3000, webhook,")

    assert [(type(sink).__name__, sink_name(sink)) for sink in sinks] == [
        ("StripeSink", "stripe"),
        ("LagoSink", "lago"),
        ("LagoSink", "second"),
        ("WebhookSink", "webhook"),
    ]
    assert isinstance(sinks[1], LagoSink)
    assert (sinks[1].mode, sinks[1]._customers) == ("test", "same")


@pytest.mark.parametrize("text", ["", " , ,"])
def test_nothing_names_nothing(text: str) -> None:
    assert named_sinks(text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("strpe", "there is no sink 'strpe'. Known: amberflo, lago, openmeter, opentelemetry, stripe, webhook"),
        ("stripe,orb:account=eu", "there is no sink 'orb:account=eu'. Known:"),
        ("lago,mode=test", "there is no sink 'mode=test'"),
        ("module:attribute", "there is no sink 'module:attribute'"),
        ("lago:half", "there is no sink 'lago:half'"),
        ("=lago", "there is no sink '=lago'"),
        ("lago,lago", "two sinks are called 'lago': name one, as in second=lago"),
        ("lago:mode=trial", "mode must be 'live' or 'test', not 'trial'"),
        ("lago:api_key=abc", "api_key does not belong on a command line"),
        ("stripe:api=v2,api_key=abc", "api_key does not belong on a command line"),
    ],
)
def test_what_cannot_be_named_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        named_sinks(text)

    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (None, {}),
        ("", {}),
        ("api=v2", {"api": "v2"}),
        ("api = v2 , url=https://a.example/?b=c", {"api": "v2", "url": "https://a.example/?b=c"}),
        ("api=", {"api": ""}),
        ("attribute", None),
        ("api=v2,attribute", None),
    ],
)
def test_options_are_read(text: str | None, options: dict[str, str] | None) -> None:
    assert read_options(text) == options


# ---- Meter.from_env ----


@pytest.fixture
def opened() -> Iterator[Callable[[], Meter]]:
    meters: list[Meter] = []

    def from_env() -> Meter:
        meters.append(Meter.from_env())
        return meters[-1]

    yield from_env
    for meter in meters:
        meter.close()


def test_a_meter_of_the_environment_reports_to_the_sinks_that_it_names(
    opened: Callable[[], Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger comes first, so that sinks can look customers up in it."""
    with FakeLago(key="lago-key") as lago, FakeOpenMeter() as openmeter:
        openmeter.add_meter("tokens_total", "prompt", "$.tokens")
        monkeypatch.setenv("LAGO_API_KEY", "lago-key")
        monkeypatch.setenv("LAGO_API_URL", lago.url)
        monkeypatch.setenv("TOKEN_METER_SINKS", f"lago,events=openmeter:base_url={openmeter.url},source=env")
        monkeypatch.setenv("TOKEN_METER_LEDGER", "ledger.db")
        monkeypatch.setenv("TOKEN_METER_JOURNAL", "journal")
        monkeypatch.setenv("TOKEN_METER_DIMENSIONS", "feature, route,")
        meter = opened()
        meter.customers.edit("acme", external_ids={"lago": "sub_1"})
        meter.record(Usage(input=3), customer="acme", model="gpt-5", provider="openai")
        meter.flush()

        assert repr(meter) == "Meter(ledger, lago, events)"
        assert str(meter.journal_folder) == str(Path("journal").absolute()) or str(meter.journal_folder) == "journal"
        assert lago.totals() == {("sub_1", "llm_input_tokens", "gpt-5", "openai"): 3}
        assert openmeter.totals() == {("acme", "tokens_total", "gpt-5", "openai", "input"): 3}
        assert len(meter.events()) == 1
        assert Path("ledger.db").exists()
        meter.close()


@pytest.mark.parametrize("text", [None, "", "  "])
def test_without_names_a_meter_of_the_environment_has_its_ledger_alone(
    opened: Callable[[], Meter], monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    if text is not None:
        monkeypatch.setenv("TOKEN_METER_SINKS", text)

    meter = opened()

    assert repr(meter) == "Meter(ledger)"
    assert str(meter.journal_folder).endswith("usage.db.journal")


def test_the_journal_stands_beside_the_ledger_unless_it_is_named(
    opened: Callable[[], Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_METER_SINKS", "lago")

    assert str(opened().journal_folder).endswith("usage.db.journal")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stripe,nowhere", "^TOKEN_METER_SINKS: there is no sink 'nowhere'. Known: amberflo, lago, openmeter, "),
        ("lago:colour=red", "^TOKEN_METER_SINKS: the sink 'lago' has no option 'colour'"),
    ],
)
def test_a_name_that_is_wrong_stops_the_program_at_its_start(
    monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("TOKEN_METER_SINKS", text)

    with pytest.raises(ValueError, match=said):
        Meter.from_env()
    assert list(Path.cwd().iterdir()) == []


def test_a_disabled_meter_makes_no_sinks(opened: Callable[[], Meter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_METER_DISABLED", "1")
    monkeypatch.setenv("TOKEN_METER_SINKS", "nowhere")

    assert repr(opened()) == "Meter()"
