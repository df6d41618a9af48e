"""`token-meter prices`: looking at the book with and without a ledger, taking new prices, and deciding on them."""

from __future__ import annotations

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import Cli, Result, store
from tests.prices.kit import Answer, Provider, Server, model, model_in, shipped_as_feed
from token_meter.billing.plans import PlansFile
from token_meter.bookkeeping.plan_book import PlanBook
from token_meter.cli.price_view import age_lines, day
from token_meter.cli.prices import ROWS_SHOWN_MAX, app
from token_meter.ledger import Ledger
from token_meter.prices import PriceBook
from token_meter.testing.builders import make_event
from token_meter.usage import Usage

SHIPPED = shipped_as_feed()


@pytest.fixture
def prices() -> Cli:
    """Run a command of the price book in this process."""

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(app, arguments, prog_name="token-meter prices")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def feed() -> list[Provider]:
    """A feed that says what the shipped book says, to be changed."""
    return deepcopy(SHIPPED)


def write(feed: list[Provider], name: str = "feed.json") -> str:
    Path(name).write_text(json.dumps(feed))
    return name


def restate(feed: list[Provider], provider: str, id: str, **units: str) -> None:
    """Another price of a model, without a date."""
    prices = model_in(feed, provider, id)["prices"]
    assert len(prices) == 1, "a model with dates needs another test"
    prices[0]["prices"] |= units


def use(number: int = 1, **fields: Any) -> None:
    """A call of gpt-5 in the ledger, so late that it is in the hour of whatever the test syncs."""
    fields = {"model": "gpt-5", "model_requested": None, "usage": Usage(input=1_000_000, output=1_000_000)} | fields
    store([make_event(number, time=datetime.now(UTC) + timedelta(minutes=5), **fields)])


def charge(markup: str) -> None:
    """A default plan with this markup."""
    file = PlansFile.model_validate(
        {
            "rate_cards": [{"name": "standard", "currency": "USD", "rates": [{"meter": "llm_tokens", "cost_plus": {"markup": markup}}]}],
            "plans": [{"name": "pro", "currency": "USD", "rate_cards": ["standard"]}],
        }
    )  # fmt: skip
    with Ledger("usage.db") as ledger:
        PlanBook(ledger).keep(file, effective_from=datetime(2026, 1, 1, tzinfo=UTC))
        PlanBook(ledger).set_default("pro", effective_from=datetime(2026, 1, 1, tzinfo=UTC))


# list


def test_the_list_needs_no_ledger(prices: Cli) -> None:
    result = prices("list", "--model", "gpt-5", "--context", "standard", "--at", "2026-11-01", "--csv")

    assert result.code == 0
    assert result.out.splitlines() == [
        "publisher,provider,model,name,token_type,context,list_price,per,multiplier,our_price",
        "openai,openai,gpt-5,GPT-5,input,standard,1.25,1M tokens,,",
        "openai,openai,gpt-5,GPT-5,cache_read,standard,0.125,1M tokens,,",
        "openai,openai,gpt-5,GPT-5,output,standard,10,1M tokens,,",
        "openai,openai,gpt-5,GPT-5,web_search,standard,10,1K calls,,",
        "openai,openai,gpt-5,GPT-5,file_search,standard,2.5,1K calls,,",
    ]
    assert result.err.splitlines()[0] == "5 prices of 1 model"
    assert result.err.splitlines()[1].startswith("prices of 2026-")
    assert not Path("usage.db").exists()


def test_the_list_shows_our_multiplier_and_our_price(prices: Cli) -> None:
    use()
    at_cost = prices("list", "--model", "gpt-5", "--token-type", "output", "--context", "standard", "--csv").out
    charge("30%")

    result = prices("list", "--model", "gpt-5", "--token-type", "output", "--context", "standard", "--csv")

    assert at_cost.splitlines()[1:] == ["openai,openai,gpt-5,GPT-5,output,standard,10,1M tokens,1,10"]
    assert result.out.splitlines()[1:] == ["openai,openai,gpt-5,GPT-5,output,standard,10,1M tokens,1.3,13"]


def test_a_negotiated_discount_is_in_our_price(prices: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own.yaml").write_text("discounts: [{provider: openai, model: gpt-5, list_multiplier: 0.8}]\n")
    monkeypatch.setenv("TOKEN_METER_PRICES", "own.yaml")
    use()
    charge("30%")

    rows = prices("list", "--model", "gpt-5", "--token-type", "output", "--context", "standard", "--json").json[
        "prices"
    ]

    assert [(row["list_price"], row["multiplier"], row["our_price"]) for row in rows] == [("10", "1.3", "10.4")]


def test_the_list_for_programs(prices: Cli) -> None:
    book = PriceBook.load()

    document = prices("list", "--model", "gpt-5", "--token-type", "output", "--context", "flex", "--json").json

    assert {name: document[name] for name in ("book", "made", "checked")} == {
        "book": book.version, "made": f"{book.made:%Y-%m-%d}", "checked": None,
    }  # fmt: skip
    price = next(
        each for each in book.model("openai", "gpt-5").prices
        if each.token_type == "output" and each.context == (("service_tier", "flex"),)
    )  # fmt: skip
    said = {name: value for name, value in price.to_json().items() if name not in ("display_name", "status")}
    ours = {"name": "GPT-5", "list_price": "5", "multiplier": None, "our_price": None}
    assert document["prices"] == [{**said, **ours}]


def test_filters_narrow_the_list(prices: Cli) -> None:
    def found(*filters: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = prices("list", *filters, "--json").json["prices"]
        assert rows
        return rows

    everything = found()
    assert {row["provider"] for row in found("--provider", "bedrock")} == {"aws"}
    assert {row["publisher"] for row in found("--publisher", "Anthropic")} == {"anthropic"}
    assert len({row["provider"] for row in found("--publisher", "anthropic")}) > 2
    assert {row["token_type"] for row in found("--token-type", "cache_read")} == {"cache_read"}
    assert all("sonnet" in f"{row['model']} {row['name']}".lower() for row in found("--name", "Sonnet"))
    assert {tuple(row["context"]) for row in found("--context", "batch")} == {("batch",)}
    dear = found("--min", "100", "--max", "150")
    assert {row["per"] for row in dear} == {1_000_000}
    assert sorted({Decimal(row["amount"]) for row in dear}) == sorted(
        {Decimal(row["amount"]) for row in everything if row["unit"] in ("token", "character") and 100 <= Decimal(row["amount"]) <= 150}
    )  # fmt: skip


def test_a_table_for_people_ends_somewhere(prices: Cli) -> None:
    table, sheet = prices("list", "--provider", "openrouter"), prices("list", "--provider", "openrouter", "--csv")

    assert len(sheet.out.splitlines()) > ROWS_SHOWN_MAX + 1
    assert len(table.lines) == ROWS_SHOWN_MAX + 2
    assert f"the first {ROWS_SHOWN_MAX} are shown: filter, or take all of them with --csv" in table.err
    assert "are shown" not in sheet.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--provider", "opnai"], "the price book has no provider 'opnai'. Did you mean 'openai'? Known: "),
        (["--publisher", "antropic"], "no model is by 'antropic'. Did you mean 'anthropic'? Known: "),
        (["--token-type", "outputs"], "'outputs' is no token type. Did you mean 'output'? Known: input, "),
        (
            ["--model", "gpt-5", "--context", "batsh"],
            "none of these prices is for 'batsh'. Did you mean 'batch'? There are ",
        ),
        (["--min", "cheap"], "--min is no number ('cheap')"),
        (["--at", "someday"], "'someday' is no time: use one of "),
        (["--json", "--csv"], "choose one of --json, --csv and --markdown"),
    ],
)
def test_a_filter_that_means_nothing_is_wrong_usage(prices: Cli, arguments: list[str], said: str) -> None:
    result = prices("list", *arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"token-meter: {said}")


def test_nothing_that_matches_is_no_failure(prices: Cli) -> None:
    result = prices("list", "--name", "no such model")

    assert (result.code, result.err.splitlines()[0]) == (0, "no price matched; leave filters out")


def test_a_ledger_that_is_named_must_be_there(prices: Cli) -> None:
    for command in (["list"], ["show", "gpt-5"], ["history", "gpt-5"], ["diff"], ["held"]):
        result = prices(*command, "--ledger", "nowhere.db")

        assert (result.code, result.out) == (3, "")
        assert result.err.startswith("token-meter: no ledger at nowhere.db")


# show, history


def test_a_model_is_shown_with_dates_and_sources(prices: Cli) -> None:
    result = prices("show", "gpt-5.6-sol", "--at", "2026-11-01", "--markdown")

    lines = [line for line in result.out.splitlines() if "| output | standard |" in line]
    assert [line.rpartition(" genai-prices ")[0] for line in lines] == [
        "| output | standard | 20 | 1M tokens | - | - | 2026-08-21 |"
    ]
    assert result.err.splitlines()[0].startswith("openai/gpt-5.6-sol (GPT-5.6 Sol); also called ")


def test_a_model_is_shown_as_it_was(prices: Cli) -> None:
    def output(*when: str) -> list[str]:
        rows = prices("show", "openai/gpt-5.6-sol", *when, "--json").json["prices"]
        return [row["amount"] for row in rows if row["token_type"] == "output" and not row["context"] and not row["above_context_tokens"]]  # fmt: skip

    assert (output("--at", "2026-08-20"), output("--at", "2026-08-21")) == (["30"], ["20"])


def test_the_history_shows_every_price(prices: Cli) -> None:
    made = f"{PriceBook.load().made:%Y-%m-%d}"

    rows = prices("history", "gpt-5.6-sol", "--csv").out.splitlines()

    assert [row.split(",prc_")[0] for row in rows if row.startswith("output,standard,")] == [
        f"output,standard,30,1M tokens,,2026-08-21,active,{made}",
        f"output,standard,20,1M tokens,2026-08-21,,active,{made}",
    ]


@pytest.mark.parametrize("command", ["show", "history"])
def test_an_unknown_model_says_what_is_near(prices: Cli, command: str) -> None:
    typo, nothing, there = (
        prices(command, *words) for words in (["gpt5"], ["xyzzy"], ["gpt-5x", "--provider", "openai"])
    )

    assert [(each.code, each.out) for each in (typo, nothing, there)] == [(1, "")] * 3
    assert typo.err.startswith("token-meter: the price book has no model 'gpt5'. Did you mean 'gpt-5'? ")
    assert nothing.err.startswith("token-meter: the price book has no model 'xyzzy'. `token-meter prices list ")
    assert there.err.startswith("token-meter: the price book has no model 'gpt-5x' of openai. Did you mean ")


def test_a_model_that_several_resell_needs_a_provider(prices: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [
        {"provider": name, "model": "llama-ours", "prices": {"input": price}} for name, price in (("a", 1), ("b", 2))
    ]
    Path("own.json").write_text(json.dumps({"models": own}))
    monkeypatch.setenv("TOKEN_METER_PRICES", "own.json")

    several, one, other = (
        prices("show", *words, "--csv")
        for words in (["llama-ours"], ["llama-ours", "--provider", "b"], ["a/llama-ours"])
    )

    assert (several.code, several.err) == (1, "token-meter: 'llama-ours' is sold by a, b: name one with --provider\n")
    assert [each.out.splitlines()[1].split(",")[2] for each in (one, other)] == ["2", "1"]


def test_own_prices_are_shown(prices: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own.yaml").write_text("models: [{provider: my-cluster, model: llama-ours, prices: {input: 0.20}}]\n")
    monkeypatch.setenv("TOKEN_METER_PRICES", "own.yaml")

    result = prices("show", "llama-ours", "--csv")

    assert result.out.splitlines()[1:] == ["input,standard,0.2,1M tokens,,,,price overrides"]


# sync, held, accept, reject, diff


def test_a_feed_that_says_the_same_changes_nothing(prices: Cli, feed: list[Provider]) -> None:
    result = prices("sync", write(feed), "--json")

    assert result.code == 0
    assert (result.json["changes"], result.json["rated"], result.json["dry_run"]) == ([], 0, False)
    assert result.json["agreed"] > 7_000
    assert "there was no ledger at usage.db: making one" in result.err


def test_new_prices_hold_wait_or_are_refused(prices: Cli, feed: list[Provider]) -> None:
    use()
    restate(feed, "openai", "gpt-5", input_mtok="1", output_mtok="15", cache_read_mtok="0.001")
    source = write(feed)

    tried, done, again = prices("sync", source, "--dry-run", "--json"), prices("sync", source), prices("sync", source)
    held = prices("held", "--json").json

    names = ("verdict", "token_type", "old", "new", "estimated_monthly_impact", "why")
    found = [tuple(each[name] for name in names) for each in tried.json["changes"]]
    assert sorted(found) == [
        ("active", "input", "1.25", "1", "-0.25", ""),
        ("held", "output", "10", "15", "5", "it rises by a factor of 1.5, and only one source says so"),
        ("refused", "cache_read", "0.125", "0.001", "0", "it falls by a factor of 125"),
    ]
    assert (tried.code, done.code, again.code) == (0, 1, 1)
    assert "1 event rated again" in done.err and "1 price held: see" in done.err
    assert "1 price refused: --confirm takes them after all" in done.err
    assert "1 price held: see" in again.err and "refused" not in again.err
    assert [(row["model"], row["token_type"], row["old"], row["new"], row["affected_customers"], row["last_30d_quantity"], row["estimated_monthly_impact"]) for row in held] == [
        ("gpt-5", "output", "10", "15", ["acme"], 1_000_000, "5"),
    ]  # fmt: skip


def test_held_prices_are_accepted_and_rejected_by_id(prices: Cli, feed: list[Provider]) -> None:
    use()
    restate(feed, "openai", "gpt-5", output_mtok="15")
    restate(feed, "openai", "gpt-5-mini", output_mtok="3")
    prices("sync", write(feed))
    ids = {row["model"]: row["id"] for row in prices("held", "--json").json}
    hour = day(datetime.fromisoformat(prices("held", "--json").json[0]["effective_from"]).replace(tzinfo=UTC))

    accepted, rejected = prices("accept", ids["gpt-5"]), prices("reject", ids["gpt-5-mini"])

    assert (accepted.code, accepted.out) == (
        0,
        f"{ids['gpt-5']}: openai/gpt-5 output (standard) costs 15 since {hour}\n",
    )
    assert (rejected.code, rejected.out) == (
        0,
        f"{ids['gpt-5-mini']}: openai/gpt-5-mini output (standard) stays at 2\n",
    )
    assert (prices("held", "--json").json, prices("sync", "feed.json").code) == ([], 0)
    shown = prices("show", "gpt-5", "--csv").out.splitlines()
    assert [line.split(",")[2] for line in shown if line.startswith("output,standard,")] == ["15"]
    history = prices("history", "gpt-5-mini", "--csv").out.splitlines()
    assert [line.split(",")[2:7:4] for line in history if line.startswith("output,standard,")] == [
        ["2", "active"],
        ["3", "rejected"],
    ]
    assert "nothing waits" in prices("held").err


def test_a_price_is_accepted_from_another_day(prices: Cli, feed: list[Provider]) -> None:
    use()
    restate(feed, "openai", "gpt-5", output_mtok="15")
    prices("sync", write(feed))
    (waiting,) = prices("held", "--json").json

    accepted = prices("accept", waiting["id"], "--from", "2026-11-03")

    assert (accepted.code, accepted.out.partition(": ")[2]) == (
        0,
        "openai/gpt-5 output (standard) costs 15 since 2026-11-03\n",
    )
    wrong = prices("accept", waiting["id"], "--from", "soon")
    assert (wrong.code, "soon" in wrong.err) == (2, True)


def test_confirm_takes_what_is_beyond_a_factor_of_ten(prices: Cli, feed: list[Provider]) -> None:
    use()
    restate(feed, "openai", "gpt-5", output_mtok="150")

    refused = prices("sync", write(feed), "--json")
    confirmed = prices("sync", "feed.json", "--confirm", "--json")

    assert [(run.code, [each["verdict"] for each in run.json["changes"]], run.json["rated"]) for run in (refused, confirmed)] == [
        (1, ["refused"], 1),
        (0, ["active"], 1),
    ]  # fmt: skip


def test_a_second_source_lets_a_rise_happen(prices: Cli, feed: list[Provider]) -> None:
    use()
    restate(feed, "openai", "gpt-5", output_mtok="15")
    Path("map.json").write_text(json.dumps({"gpt-5": {"litellm_provider": "openai", "output_cost_per_token": 1.5e-05}}))

    result = prices("sync", write(feed), "--second", "map.json", "--json")

    assert (result.code, [each["verdict"] for each in result.json["changes"]]) == (0, ["active"])


def test_a_new_model_prices_what_waited(prices: Cli, feed: list[Provider]) -> None:
    use(model="gpt-99")
    next(each for each in feed if each["id"] == "openai")["models"].append(
        model("gpt-99", {"input_mtok": "1", "output_mtok": "2"})
    )

    result = prices("sync", write(feed), "--json")

    with Ledger("usage.db") as ledger:
        assert (ledger.pending(), [row.cost for row in ledger.costs()]) == (0, [3])
    assert (result.code, result.json["rated"]) == (0, 1)


def test_an_old_or_partial_feed_is_refused(prices: Cli, feed: list[Provider]) -> None:
    use()
    next(each for each in feed if each["id"] == "openai")["models"][:] = []

    result = prices("sync", write(feed))

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("token-meter: this feed lacks 1")
    assert "models of openai that the book has" in result.err


def test_a_dry_run_makes_no_ledger(prices: Cli, feed: list[Provider]) -> None:
    restate(feed, "openai", "gpt-5", output_mtok="9")

    result = prices("sync", write(feed), "--dry-run", "--json")

    assert (result.code, [each["new"] for each in result.json["changes"]]) == (0, ["9"])
    assert not Path("usage.db").exists()


def test_a_source_that_is_not_there_says_so(prices: Cli) -> None:
    result = prices("sync", "nowhere.json")

    assert (result.code, result.err) == (
        1,
        "token-meter: cannot read the prices in nowhere.json: No such file or directory\n",
    )


def test_an_id_that_there_is_not_changes_nothing(prices: Cli) -> None:
    use()

    result = prices("accept", "prc_none")

    assert (result.code, result.err) == (1, "token-meter: there is no price 'prc_none'; none waits\n")


def test_the_installed_package_is_the_default_source(prices: Cli) -> None:
    pytest.importorskip("genai_prices")

    result = prices("sync", "--dry-run", "--json")

    assert (result.code, result.json["source"]) == (0, "installed")


def test_a_url_is_asked_only_for_what_is_newer(
    prices: Cli, feed: list[Provider], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    restate(feed, "openai", "gpt-5", input_mtok="1", output_mtok="150")
    server = Server({"/feed": Answer(200, json.dumps(feed).encode(), {"ETag": '"one"'})})
    try:
        first, again, confirmed = (
            prices("sync", f"{server.url}/feed", *more, "--json") for more in ([], [], ["--confirm"])
        )
    finally:
        server.close()

    runs = [
        (run.code, run.json["unchanged"], [each["verdict"] for each in run.json["changes"]])
        for run in (first, again, confirmed)
    ]
    assert runs == [(1, False, ["active", "refused"]), (0, True, []), (0, False, ["active"])]
    assert [headers.get("if-none-match") for _, headers in server.requests] == [None, '"one"', None]


def test_the_difference_is_what_was_recorded_and_what_is_announced(prices: Cli, feed: list[Provider]) -> None:
    before = prices("diff", "--json").json["changes"]
    use()
    restate(feed, "openai", "gpt-5", input_mtok="1", output_mtok="15")
    prices("sync", write(feed))

    after = prices("diff", "--json").json["changes"]
    nothing_new = prices("diff", "--since", "2099-01-01", "--json").json["changes"]

    assert {(each["kind"], each["status"]) for each in before} <= {("scheduled", "active")}
    assert [(each["kind"], each["status"], each["token_type"], each["old"], each["new"], each["estimated_monthly_impact"]) for each in after[:2]] == [
        ("changed", "active", "input", "1.25", "1", "-0.25"),
        ("changed", "held", "output", "10", "15", "5"),
    ]  # fmt: skip
    assert [each["id"] for each in after[2:]] == [each["id"] for each in before] == [each["id"] for each in nothing_new]


# check


def test_a_check_says_where_two_sources_disagree(prices: Cli) -> None:
    Path("map.json").write_text(
        json.dumps(
            {
                "gpt-5": {
                    "litellm_provider": "openai",
                    "input_cost_per_token": 1.25e-06,
                    "output_cost_per_token": 1.1e-05,
                }
            }
        )
    )

    result = prices("check", "map.json", "--json")

    document = result.json
    source = next(price.source for price in PriceBook.load().model("openai", "gpt-5").prices)
    assert (result.code, document["agreed"], document["only_second"], document["adjudicated"]) == (1, 1, 0, 0)
    assert [{name: value for name, value in each.items() if name != "id"} for each in document["disagreements"]] == [
        {
            "provider": "openai", "model": "gpt-5", "token_type": "output", "context": {},
            "above_context_tokens": None, "ours_per_million": "10", "theirs_per_million": "11",
            "source": source, "second_source": "map.json",
        }
    ]  # fmt: skip
    assert not Path("usage.db").exists()


def test_what_was_adjudicated_is_not_shown_again(prices: Cli) -> None:
    use()
    Path("map.json").write_text(
        json.dumps(
            {"gpt-5": {"litellm_provider": "openai", "input_cost_per_token": 1e-06, "output_cost_per_token": 1.1e-05}}
        )
    )
    ids = [each["id"] for each in prices("check", "map.json", "--json").json["disagreements"]]

    wrong = prices("check", "map.json", "--adjudicate", "drf_none")
    one = prices("check", "map.json", "--adjudicate", ids[0], "--csv")
    rest = prices("check", "map.json", "--adjudicate", "all")
    again = prices("check", "map.json")

    assert len(ids) == 2
    assert (wrong.code, wrong.err) == (
        2,
        "token-meter: there is no disagreement 'drf_none': run this without --adjudicate to see them\n",
    )
    assert (one.code, [line.split(",")[0] for line in one.out.splitlines()]) == (1, ["id", ids[1]])
    assert (rest.code, again.code) == (0, 0)
    assert again.err.startswith("0 prices agree, 0 do not; 2 adjudicated; only the book has ")


def test_adjudicating_needs_a_ledger(prices: Cli) -> None:
    Path("map.json").write_text(json.dumps({"gpt-5": {"litellm_provider": "openai", "input_cost_per_token": 1e-06}}))

    result = prices("check", "map.json", "--adjudicate", "all")

    assert result.code == 3


# The age of the book


def test_an_old_book_is_worth_a_word() -> None:
    book = PriceBook.load()
    of = f"prices of {book.made:%Y-%m-%d} (book {book.version})"
    checked = book.made + timedelta(days=20)

    assert age_lines(book, None, book.made + timedelta(days=7)) == [of]
    assert age_lines(book, None, book.made + timedelta(days=8)) == [
        of,
        "these prices are 8 days old: `pip install -U genai-prices`, then `token-meter prices sync`",
    ]
    assert age_lines(book, checked, checked + timedelta(days=1)) == [
        f"{of}, last compared with a source on {checked:%Y-%m-%d %H:%M} UTC"
    ]
