"""Budgets in front of real SDKs: refused before anything is sent, settled with what was billed, held once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from uuid import uuid4

import anthropic
import anyio
import anyio.from_thread
import anyio.to_thread
import openai
import pytest
from google import genai

from tests.ledger.conftest import postgresql, schema_url, url  # noqa: F401 - fixtures
from tests.tokeniser_kit import Gated, loaded
from token_meter import Meter
from token_meter.budgets.hold import Unreachable
from token_meter.budgets.policy import CreditPolicy
from token_meter.budgets.sqlite_store import BUSY_SECONDS
from token_meter.errors import BudgetExceeded
from token_meter.testing.provider import LoopbackProvider

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 50}


class Team:
    """A loopback provider, a Meter with a ledger, and clients of the three SDKs."""

    def __init__(self, place, folder):
        self.stack = ExitStack()
        self.provider = self.stack.enter_context(LoopbackProvider())
        self.meter = self.stack.enter_context(Meter(place, journal=folder / "journal", dimensions=["key"]))

    def openai(self, *, faults=None, **options):
        base = self.provider.url_with(**faults) if faults else self.provider.url
        made = openai.OpenAI(api_key="k", base_url=f"{base}/v1", **{"max_retries": 0, **options})
        return self.meter.wrap(self._closed(made))

    def anthropic(self):
        return self.meter.wrap(self._closed(anthropic.Anthropic(api_key="k", base_url=self.provider.url)))

    def google(self):
        return self.meter.wrap(genai.Client(api_key="k", http_options={"base_url": self.provider.url}))

    def async_openai(self):
        return self.meter.wrap(openai.AsyncOpenAI(api_key="k", base_url=f"{self.provider.url}/v1", max_retries=0))

    def _closed(self, client):
        return self.stack.enter_context(client)

    def standing(self, name=None):
        """What is spent, held and lost, and what may still be held."""
        [found] = self.meter.budgets.standings(name)
        return tuple(str(each.normalize()) for each in (found.spent, found.held, found.lost))

    @property
    def charged(self):
        return sum((row.charge for row in self.meter.costs(by=())), Decimal(0))

    @property
    def requests(self):
        return len(self.provider.requests)


@pytest.fixture
def team(url, tmp_path):  # noqa: F811
    made = Team(url, tmp_path)
    with made.stack:
        yield made


@pytest.fixture
def small(tmp_path):
    made = Team(tmp_path / "usage.db", tmp_path)
    with made.stack:
        yield made


def test_a_call_that_does_not_fit_is_refused_before_anything_is_sent(team):
    team.meter.budget("acme", "0.00002", enforce="strict", per="day")
    client = team.openai()

    with team.meter.customer("acme"), pytest.raises(BudgetExceeded) as refused:
        client.chat.completions.create(**CHAT)

    error = refused.value
    assert team.requests == 0
    assert (error.budget, error.scope, error.unit) == ("charge per day for customer=acme", "customer=acme", "USD")
    assert (error.reason, error.limit, error.spent, error.held) == ("budget", Decimal("0.00002"), 0, 0)
    assert error.needed > error.limit
    # Tomorrow it does not fit either.
    assert error.retry_after is None and error.resets_at is None
    for word in ("leaves no room", "more than the whole budget of 0.00002 USD: waiting does not help", error.command):
        assert word in str(error)
    assert error.command == "token-meter budgets set LIMIT --for customer=acme --per day"
    assert team.meter.events() == []


def test_a_call_that_fits_again_tomorrow_is_told_when(team):
    team.meter.budget("acme", 1, of="requests", per="day")
    client = team.openai()

    with team.meter.customer("acme"):
        client.chat.completions.create(**CHAT)
        with pytest.raises(BudgetExceeded, match=r"1 of 1 request is spent\. It begins anew at") as refused:
            client.chat.completions.create(**CHAT)

    assert 0 < refused.value.retry_after <= 86_400 and refused.value.resets_at.hour == 0


def test_what_this_program_sets_counts_at_its_next_call(team):
    """Also for a customer for whom there was nothing to look up so far."""
    client = team.openai()
    with team.meter.customer("acme"):
        client.chat.completions.create(**CHAT)
        team.meter.budget("acme", 0, of="requests")
        with pytest.raises(BudgetExceeded):
            client.chat.completions.create(**CHAT)
    with team.meter.customer("globex"):
        client.chat.completions.create(**CHAT)
        team.meter.customers.edit("globex", status="paused")
        with pytest.raises(BudgetExceeded, match="globex is paused"):
            client.chat.completions.create(**CHAT)
        team.meter.customers.edit("globex", status="active")
        client.chat.completions.create(**CHAT)
        team.meter.budgets.policy("globex", CreditPolicy.read({"policy": "block"}))
        with pytest.raises(BudgetExceeded, match="prepaid credit"):
            client.chat.completions.create(**CHAT)


def test_a_charge_in_another_currency_is_told_as_that(small):
    small.meter.budget("acme", 100, currency="EUR")
    client = small.openai()

    with (
        small.meter.customer("acme"),
        pytest.raises(BudgetExceeded, match="counts EUR, and this call is charged in USD"),
    ):
        client.chat.completions.create(**CHAT)


def test_callers_who_wait_for_a_locked_file_wait_together(small):
    """Each of them for its own three seconds, and not one behind the other."""
    small.meter.budget("acme", 1)
    client = small.openai()
    with small.meter.customer("acme"):
        client.chat.completions.create(**CHAT)

    def call():
        with small.meter.customer("acme"):
            client.chat.completions.create(**CHAT)

    lock = sqlite3.connect(small.meter.ledger.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        callers = [threading.Thread(target=call) for _ in range(6)]
        began = time.monotonic()
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        lock.execute("ROLLBACK")
        lock.close()

    assert time.monotonic() - began < 2.5 * BUSY_SECONDS, "six of them in line would take six times as long"
    assert small.requests == 7


def test_a_call_that_fits_is_settled_with_what_it_cost(team):
    team.meter.budget("acme", "1")
    client = team.openai()

    with team.meter.customer("acme"):
        client.chat.completions.create(**CHAT)
        before_recording = team.meter._door.gate._desk.standings()[0]
        list(client.chat.completions.create(**CHAT, stream=True))

    assert before_recording.held == 0 and before_recording.spent > 0
    assert Decimal(team.standing()[0]) == team.charged > 0
    assert team.standing()[1:] == ("0", "0")
    assert team.meter.budgets.holds(pending=True) == []


def test_a_budget_counts_at_the_next_hold_of_a_program_that_has_one(team):
    team.meter.budget("acme", "1")
    client = team.openai()
    with team.meter.customer("acme"):
        client.chat.completions.create(**CHAT)

        team.meter.budget("acme", "0")

        with pytest.raises(BudgetExceeded):
            client.chat.completions.create(**CHAT)


def test_every_sdk_and_every_kind_of_call_is_held_and_settled(small):
    small.meter.budget("acme", "100")
    chat, message, generate = small.openai(), small.anthropic(), small.google()
    with small.meter.customer("acme"):
        chat.responses.create(model="gpt-5", input="Hello", max_output_tokens=40)
        chat.embeddings.create(model="text-embedding-3-small", input="Hello")
        with chat.chat.completions.stream(**CHAT) as stream:
            stream.until_done()
        message.messages.create(model="claude-sonnet-4-6", max_tokens=99, messages=HELLO)
        with message.messages.stream(model="claude-sonnet-4-6", max_tokens=99, messages=HELLO) as stream:
            stream.until_done()
        generate.models.generate_content(model="gemini-2.5-flash", contents="Hello")
        list(generate.models.generate_content_stream(model="gemini-2.5-flash", contents="Hello"))

        asyncio.run(_async_calls(small))

    events = len(small.meter.events())
    assert events == len(small.provider.billed) == 11
    assert Decimal(small.standing()[0]) == small.charged
    assert small.standing()[1:] == ("0", "0")
    assert small.meter.budgets.holds(pending=True) == []


async def _async_calls(team):
    client, generate = team.async_openai(), team.google()
    async with client:
        await client.chat.completions.create(**CHAT)
        async for _ in await client.chat.completions.create(**CHAT, stream=True):
            pass
    await generate.aio.models.generate_content(model="gemini-2.5-flash", contents="Hello")
    async for _ in await generate.aio.models.generate_content_stream(model="gemini-2.5-flash", contents="Hello"):
        pass
    await generate.aio.aclose()


def test_async_calls_are_refused_and_leave_nothing_behind(small):
    small.meter.budget("acme", "0", of="requests")

    async def call():
        async with small.async_openai() as client:
            with pytest.raises(BudgetExceeded):
                await client.chat.completions.create(**CHAT)
        client = small.google()
        with pytest.raises(BudgetExceeded):
            await client.aio.models.generate_content(model="gemini-2.5-flash", contents="Hello")
        await client.aio.aclose()

    with small.meter.customer("acme"):
        asyncio.run(call())

    assert small.requests == 0 and small.meter._journal.state().outstanding == 0


def test_an_async_call_that_is_cancelled_while_it_waits_to_be_held_holds_nothing(small):
    """Another process writes to the ledger meanwhile; the hold that comes too late is given back."""
    small.meter.budget("acme", "1")
    with small.meter.customer("acme"):
        small.openai().chat.completions.create(**CHAT)
    small.meter.flush()
    spent = small.standing()
    before = small.requests

    async def call():
        async with small.async_openai() as client:
            task = asyncio.create_task(client.chat.completions.create(**CHAT))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    other = sqlite3.connect(small.meter.ledger.file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    unlock = threading.Timer(0.5, other.execute, ["ROLLBACK"])
    try:
        with small.meter.customer("acme"):
            unlock.start()
            asyncio.run(call())
    finally:
        unlock.join()
        other.close()
    began = time.monotonic()
    while time.monotonic() < began + 1 or (small.meter.budgets.holds() and time.monotonic() < began + 10):
        time.sleep(0.02)  # the thread that waited makes its hold only now, and gives it back
        small.meter._door.tend()

    assert small.requests == before
    assert small.standing() == spent


def test_what_the_provider_refuses_is_given_back(small):
    small.meter.budget("acme", "1")
    client = small.openai(faults={"fail": "429x0"})

    with small.meter.customer("acme"), pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**CHAT)

    assert small.standing() == ("0", "0", "0")


def test_retries_of_the_sdk_hold_once(small):
    small.meter.budget("acme", 1, of="requests")
    client = small.openai(faults={"fail": "500x2"}, max_retries=3)

    with small.meter.customer("acme"):
        client.chat.completions.create(**CHAT)

    assert small.standing() == ("1", "0", "0")


def test_a_call_of_which_nobody_knows_stays_charged_as_lost(small):
    small.meter.budget("acme", "1")
    client = small.openai(faults={"delay": 1.0}, timeout=0.2)

    with small.meter.customer("acme"), pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**CHAT)
    small.meter.flush()

    spent, held, lost = small.standing()
    assert (spent, held) == ("0", "0") and Decimal(lost) > 0
    [hold] = small.meter.budgets.holds()
    assert hold.state == "lost" and hold.caller["customer"] == "acme"
    assert small.meter.budgets.release([hold.id]) == 1
    assert small.standing() == ("0", "0", "0")


def test_every_scope_has_to_have_room_and_the_others_keep_nothing(small):
    small.meter.budget("acme", "1", name="customer")
    small.meter.budget(None, 1, of="requests", scope={"key": "*"}, name="key")
    client = small.openai()

    with small.meter.customer("acme", key="k1"):
        client.chat.completions.create(**CHAT)
        with pytest.raises(BudgetExceeded, match="key=k1"):
            client.chat.completions.create(**CHAT)
    with small.meter.customer("acme", key="k2"):
        client.chat.completions.create(**CHAT)
    with small.meter.customer("acme"):  # no key: that budget does not concern it
        client.chat.completions.create(**CHAT)

    assert small.standing("customer")[1:] == ("0", "0")
    assert Decimal(small.standing("customer")[0]) == small.charged
    assert [str(each.spent) for each in small.meter.budgets.standings("key")] == ["1", "1"]


def test_a_named_customer_has_a_budget_of_their_own_instead_of_everybodys(small):
    small.meter.budget("*", 0, of="requests")
    small.meter.budget("acme", 1, of="requests")
    client = small.openai()

    with small.meter.customer("acme"):
        client.chat.completions.create(**CHAT)
    with small.meter.customer("globex"), pytest.raises(BudgetExceeded):
        client.chat.completions.create(**CHAT)


def test_a_soft_budget_refuses_nothing_and_tells(small):
    small.meter.budget("acme", "0.000001", enforce="soft")
    client = small.openai()

    with small.meter.customer("acme"):
        client.chat.completions.create(**CHAT)
    small.meter.flush()

    assert [each["document"]["percent"] for each in notices(small, "budget.threshold")] == [50, 80, 100]


def test_a_refusal_is_told_once(small):
    small.meter.budget("acme", 0, of="requests")
    client = small.openai()
    with small.meter.customer("acme"):
        for _ in range(3):
            with pytest.raises(BudgetExceeded):
                client.chat.completions.create(**CHAT)

    small.meter._door.tend()

    [told] = notices(small, "budget.exceeded")
    assert told["customer"] == "acme" and "leaves no room" in told["document"]["message"]


def notices(team, kind):
    from token_meter.bookkeeping.notice_rows import read_notices

    with team.meter.ledger.reading() as (_, connection):
        return [each for each in read_notices(connection) if each["kind"] == kind]


# ---- money that is not there ----


def test_without_credit_no_call(team):
    team.meter.budgets.policy("acme", CreditPolicy.read({"policy": "block"}))
    client = team.openai()
    with team.meter.customer("acme"):
        with pytest.raises(BudgetExceeded, match="prepaid credit of acme does not cover") as refused:
            client.chat.completions.create(**CHAT)
        assert (refused.value.budget, refused.value.limit) == ("credit", 0)

        team.meter.credit("acme", "0.0001")
        client.chat.completions.create(**CHAT)
        team.meter.flush()
        client.chat.completions.create(**CHAT)

        with pytest.raises(BudgetExceeded, match="is left"):
            for _ in range(20):
                client.chat.completions.create(**CHAT)

        team.meter.budgets.policy("acme", CreditPolicy.read({"policy": "overage"}))
        client.chat.completions.create(**CHAT)


def test_credit_that_is_used_but_not_recorded_yet_is_not_there(small):
    """available = granted - recorded - settled but not yet recorded - held"""
    small.meter.budgets.policy("acme", CreditPolicy.read({"policy": "block", "enforce": "strict"}))
    small.meter.credit("acme", "0.0005")
    client = small.openai()
    passed = 0

    with small.meter.customer("acme"), pytest.raises(BudgetExceeded):
        while True:
            client.chat.completions.create(**CHAT)
            passed += 1

    spent = small.charged
    assert passed > 0 and spent <= Decimal("0.0005")
    assert small.meter.credits.balance("acme") == Decimal("0.0005") - spent


def test_credit_for_other_models_does_not_count(team):
    team.meter.budgets.policy("acme", CreditPolicy.read({"policy": "block"}))
    team.meter.credits.grant("acme", "5", scope={"model": "claude*"})
    client = team.openai()

    with team.meter.customer("acme"):
        with pytest.raises(BudgetExceeded):
            client.chat.completions.create(**CHAT)
        team.meter.credits.grant("acme", "5", scope={"model": "gpt-4o*"})
        client.chat.completions.create(**CHAT)


def test_a_paused_customer_makes_no_call_until_resumed(team):
    client = team.openai()
    team.meter.customers.edit("acme", status="paused")
    with team.meter.customer("acme"):
        with pytest.raises(BudgetExceeded, match="acme is paused"):
            client.chat.completions.create(**CHAT)

        team.meter.customers.edit("acme", status="active")

        client.chat.completions.create(**CHAT)


def test_a_model_without_a_price_is_refused_held_at_the_dearest_or_let_pass(small):
    client = small.openai()
    unknown = {**CHAT, "model": "unheard-of"}
    with small.meter.customer("acme"):
        small.meter.budget("acme", "1")
        with pytest.raises(BudgetExceeded, match="openai unheard-of has no price"):
            client.chat.completions.create(**unknown)
        assert small.requests == 0

        small.meter.budget("acme", "1", unpriced="dearest")
        client.chat.completions.create(**unknown)

        small.meter.budget("acme", "0.001", unpriced="dearest")
        with pytest.raises(BudgetExceeded, match="may take"):
            client.chat.completions.create(**unknown)

        small.meter.budget("acme", "0.001", unpriced="allow")
        client.chat.completions.create(**unknown)


# ---- strict and bounded ----


@pytest.mark.parametrize("more", [
    {"tools": [{"type": "web_search"}]}, {"tools": [{"type": "mcp", "server_label": "x"}], "max_tool_calls": 10**6},
])  # fmt: skip
def test_strict_refuses_what_has_no_worst_case_or_too_large_a_one(small, more):
    small.meter.budget("acme", "5", enforce="strict")
    client = small.openai()

    with small.meter.customer("acme"), pytest.raises(BudgetExceeded):
        client.responses.create(model="gpt-4o", input="Hello", **{"max_output_tokens": 10, **more})

    assert small.requests == 0


def test_strict_takes_an_earlier_response_for_the_whole_context_window(small):
    """gpt-4o-mini: 128,000 tokens at 0.15 USD a million, dearer as priority."""
    small.meter.budget("acme", "0.0192", enforce="strict")
    client = small.openai()
    with small.meter.customer("acme"):
        client.responses.create(model="gpt-4o-mini", input="Hello", max_output_tokens=10, service_tier="default")

        with pytest.raises(BudgetExceeded) as refused:
            client.responses.create(
                model="gpt-4o-mini", input="Hello", max_output_tokens=10, service_tier="default",
                previous_response_id="resp_1",
            )  # fmt: skip

    assert refused.value.needed == Decimal("0.0192") + Decimal("0.000006")


def test_strict_reckons_with_the_dearest_tier_unless_one_is_named(small):
    small.meter.budget("acme", "0", enforce="strict")
    client = small.openai()

    def needed(**more):
        with small.meter.customer("acme"), pytest.raises(BudgetExceeded) as refused:
            client.chat.completions.create(**CHAT, **more)
        return refused.value.needed

    assert needed(service_tier="auto") > needed(service_tier="default")  # which is a longer word


def test_bounded_learns_what_calls_take(small):
    """Without a maximum the first call reserves 4,096 tokens of output; later ones what calls took."""
    small.meter.budget("acme", "0.01")
    client = small.openai()
    plain = {"model": "gpt-4o-mini", "messages": HELLO}
    with small.meter.customer("acme"):
        client.chat.completions.create(**plain)
        small.meter.budget("acme", "0.0003")

        passed = [client.chat.completions.create(**plain) for _ in range(5)]

    assert len(passed) == 5


def test_parallel_calls_without_a_maximum_are_not_refused_when_the_budget_covers_them(small):
    """64 at once, a budget for what all of them take: LiteLLM lets one through here (reference/gateway.md §4)."""
    client = small.openai()
    plain = {"model": "gpt-4o-mini", "messages": HELLO}
    with small.meter.customer("acme"):
        for _ in range(25):
            client.chat.completions.create(**plain)
    small.meter.flush()
    each = small.charged / 25
    small.meter.budget("acme", small.charged + 64 * each * Decimal("1.6"))
    small.meter._door.gate._known.look()
    refused, passed = [], []

    def call():
        with small.meter.customer("acme"):
            try:
                client.chat.completions.create(**plain)
                passed.append(1)
            except BudgetExceeded as error:
                refused.append(error)

    callers = [threading.Thread(target=call) for _ in range(64)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert (len(passed), len(refused)) == (64, 0)


# ---- when the ledger does not answer ----


@contextmanager
def broken(team):
    """The store of holds answers nothing."""
    gate = team.meter._door.gate
    store = gate._store

    class Down:
        def __getattr__(self, name):
            def fail(*args, **kwargs):
                raise Unreachable("the server is gone")

            return fail

    gate._store = Down()
    try:
        yield
    finally:
        gate._store = store
        gate._down_until = 0.0


def test_without_an_answer_calls_go_on_and_prepaid_ones_do_not(small):
    small.meter.budget("acme", "1")
    small.meter.budgets.policy("prepaid", CreditPolicy.read({"policy": "block"}))
    small.meter.credit("prepaid", "5")
    client = small.openai()
    with small.meter.customer("acme"):
        client.chat.completions.create(**CHAT)

    with broken(small):
        with small.meter.customer("acme"):
            client.chat.completions.create(**CHAT)
        with small.meter.customer("prepaid"), pytest.raises(BudgetExceeded, match="cannot be looked up"):
            client.chat.completions.create(**CHAT)
        with small.meter.customer("nobody in particular"):
            client.chat.completions.create(**CHAT)

    assert small.meter.health().problems["the ledger does not answer: calls pass WITHOUT their budgets"] >= 1
    assert Decimal(small.standing()[0]) == sum(row.charge for row in small.meter.costs("acme", by=()))


def test_without_an_answer_the_operator_may_have_it_the_other_way_round(small):
    small.meter.budget("acme", "1")
    small.meter.budgets.policy("prepaid", CreditPolicy.read({"policy": "block"}))
    small.meter.budgets.unreachable(prepaid="open", others="closed")
    client = small.openai()
    small.meter._door.gate._known.look()

    with broken(small):
        with small.meter.customer("acme"), pytest.raises(BudgetExceeded, match="cannot be looked up"):
            client.chat.completions.create(**CHAT)
        with small.meter.customer("prepaid"):
            client.chat.completions.create(**CHAT)


def test_a_server_that_was_restarted_is_asked_again_at_once(schema_url, postgresql, tmp_path):  # noqa: F811
    """Every connection is cut: the next call is held all the same."""
    name = f"tm_{uuid4().hex}"  # of this test alone: others use the same server
    made = Team(f"{schema_url}&application_name={name}", tmp_path)
    with made.stack:
        made.meter.budget("acme", 2, of="requests")
        client = made.openai()
        with made.meter.customer("acme"):
            client.chat.completions.create(**CHAT)
            made.meter.flush()
            postgresql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (name,)
            )
            client.chat.completions.create(**CHAT)
            with pytest.raises(BudgetExceeded, match="leaves no room"):
                client.chat.completions.create(**CHAT)


def test_a_program_without_budgets_loads_nothing_of_them(tmp_path):
    import subprocess
    import sys

    code = f"""
import sys, openai
from token_meter import Meter
from token_meter.testing.provider import LoopbackProvider
with LoopbackProvider() as provider, Meter({str(tmp_path / "usage.db")!r}) as meter:
    with meter.wrap(openai.OpenAI(api_key="k", base_url=provider.url + "/v1")) as client:
        client.chat.completions.create(**{CHAT!r})
        print("token_meter.budgets.gate" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "False"


def test_a_forked_child_settles_nothing_of_its_parents(small):
    small.meter.budget("acme", "1")
    client = small.openai()
    with small.meter.customer("acme"):
        stream = client.chat.completions.create(**CHAT, stream=True)
        next(stream)
        child = os.fork()
        if child == 0:
            try:
                stream.close()
                small.meter._door.tend()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert [each.state for each in small.meter.budgets.holds()] == ["held"]
        list(stream)

    assert Decimal(small.standing()[0]) == small.charged


def test_holds_say_who_has_them(small):
    small.meter.budget("acme", "1")
    client = small.openai()
    with small.meter.customer("acme", key="k1"):
        stream = client.chat.completions.create(**CHAT, stream=True)
        next(stream)
        [hold] = small.meter.budgets.holds()
        list(stream)

    assert hold.caller["dimensions"] == {"key": "k1"} and hold.caller["model"] == "gpt-4o-mini"
    assert "Hello" not in hold.who


# ---- streams that are cut off ----


PLAIN = {"model": "gpt-4o-mini", "messages": HELLO}


def test_a_stream_ends_when_what_was_held_for_it_is_used_up(small):
    """An earlier call took 19 tokens, so that much is held; the stream would have 300 words."""
    small.meter.budget("acme", "1", cut_off=True)
    short, long = small.openai(), small.openai(faults={"events": 300})
    shown = []

    with small.meter.customer("acme"):
        short.chat.completions.create(**PLAIN)
        with pytest.raises(BudgetExceeded, match="the stream was ended") as ended:
            for chunk in long.chat.completions.create(**PLAIN, stream=True):
                shown.append(chunk)

    small.meter.flush()
    _, event = small.meter.events()
    assert 5 < len(shown) < 60 and ended.value.scope == "customer=acme"
    assert event.status == "estimated" and "cut_off" in event.anomalies and event.usage.output > 0
    assert Decimal(small.standing()[0]) == small.charged > 0
    assert small.standing()[1:] == ("0", "0")


def test_an_async_stream_and_googles_are_cut_off_too(small):
    small.meter.budget("acme", "1", cut_off=True)
    plain = {"model": "gemini-2.5-flash", "contents": "Hello"}

    async def read():
        long = small.provider.url_with(events=300)
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{long}/v1") as made:
            with pytest.raises(BudgetExceeded):
                async for _ in await small.meter.wrap(made).chat.completions.create(**PLAIN, stream=True):
                    pass
        client = small.meter.wrap(genai.Client(api_key="k", http_options={"base_url": long}))
        with pytest.raises(BudgetExceeded):
            async for _ in await client.aio.models.generate_content_stream(**plain):
                pass
        await client.aio.aclose()
        with pytest.raises(BudgetExceeded):
            for _ in client.models.generate_content_stream(**plain):
                pass

    with small.meter.customer("acme"):
        short, generate = small.openai(), small.google()  # Google's closes its connections when it is let go of
        short.chat.completions.create(**PLAIN)
        generate.models.generate_content(**plain)
        asyncio.run(read())

    small.meter.flush()
    assert [("cut_off" in each.anomalies) for each in small.meter.events()] == [False, False, True, True, True]
    assert small.standing()[1:] == ("0", "0")


def test_without_being_asked_for_nothing_is_cut_off(small):
    small.meter.budget("acme", "1")
    short, long = small.openai(), small.openai(faults={"events": 300})

    with small.meter.customer("acme"):
        short.chat.completions.create(**PLAIN)
        assert len(list(long.chat.completions.create(**PLAIN, stream=True))) > 290


def test_a_call_with_a_file_teaches_nothing_of_bytes_and_tokens(small):
    """Else the next call of plain text would be reckoned at a picture's tokens for a byte."""
    small.meter.budget("acme", "1")
    client = small.openai()
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}]}]

    with small.meter.customer("acme"):
        client.chat.completions.create(model="gpt-4o-mini", messages=picture, max_tokens=50)
        assert len(small.meter._door.gate._learned.tokens_per_kilobyte("gpt-4o-mini")) == 0
        client.chat.completions.create(**CHAT)
        assert len(small.meter._door.gate._learned.tokens_per_kilobyte("gpt-4o-mini")) == 1


def test_a_budget_may_have_the_input_tokenised_before_each_call(small):
    """1,000 words are 6,007 tokens by the letters of this small tokeniser, and would be 3,200 by the bytes."""
    words = {**CHAT, "messages": [{"role": "user", "content": "hello " * 1000}], "model": "gpt-4o"}
    small.meter.budget("acme", "3000", of="tokens", tokenize=True)
    client = small.openai()
    encoding = Gated()

    with loaded(encoding), small.meter.customer("acme"):
        client.chat.completions.create(**words)

    small.meter.budget("acme", "3000", of="tokens")
    with small.meter.customer("acme"), pytest.raises(BudgetExceeded):
        client.chat.completions.create(**words)
    assert encoding.threads == {threading.current_thread().name}


def test_nobody_passes_while_the_gate_opens(tmp_path):
    """The first calls of a program come together, and opening takes a while."""
    with Meter(tmp_path / "usage.db", journal=tmp_path / "before") as meter:
        meter.budget("acme", 0, enforce="strict", of="requests")
    made = Team(tmp_path / "usage.db", tmp_path)
    with made.stack:
        client = made.async_openai()

        async def call():
            with made.meter.customer("acme"), pytest.raises(BudgetExceeded):
                await client.chat.completions.create(**CHAT)

        async def main():
            await asyncio.gather(*(call() for _ in range(20)))
            await client.close()

        asyncio.run(main())
        assert made.requests == 0


def test_first_calls_of_many_threads_meet_at_the_gate(tmp_path):
    with Meter(tmp_path / "usage.db", journal=tmp_path / "before") as meter:
        meter.budget("acme", 0, enforce="strict", of="requests")
    made = Team(tmp_path / "usage.db", tmp_path)
    with made.stack:
        client, start, refused = made.openai(), threading.Barrier(12), []

        def call():
            start.wait()
            with made.meter.customer("acme"):
                try:
                    client.chat.completions.create(**CHAT)
                except BudgetExceeded:
                    refused.append(1)

        callers = [threading.Thread(target=call) for _ in range(12)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert (len(refused), made.requests) == (12, 0)


def test_no_number_in_a_request_opens_the_gate_for_others(team):
    team.meter.budget("acme", 0, of="requests")
    team.meter.budget("mallory", 10, of="tokens", enforce="strict")
    client = team.openai()
    for wild in ({"n": 10**19}, {"max_tokens": 10**19}, {"n": 10**400}):
        with team.meter.customer("mallory"), pytest.raises(BudgetExceeded):
            client.chat.completions.create(**{**CHAT, **wild})
        with team.meter.customer("acme"), pytest.raises(BudgetExceeded):
            client.chat.completions.create(**CHAT)
    assert team.requests == 0


def test_what_is_unexpected_refuses_only_where_a_limit_is_never_passed(small, monkeypatch):
    small.meter.budget("strict", 100, of="tokens", enforce="strict")
    small.meter.budget("bounded", 100, of="tokens")
    client = small.openai()
    monkeypatch.setattr("token_meter.budgets.needs.Needs.of", lambda *_: 1 / 0)

    with small.meter.customer("strict"), pytest.raises(BudgetExceeded, match="cannot be looked up"):
        client.chat.completions.create(**CHAT)
    with small.meter.customer("bounded"):
        client.chat.completions.create(**CHAT)
    assert small.meter.health().problems["the ledger does not answer: calls pass WITHOUT their budgets"] == 1


def test_credit_without_measure_is_still_credit(team):
    """10^30 in billionths does not fit any database's integers."""
    team.meter.budgets.policy("acme", CreditPolicy.read({"policy": "block"}))
    team.meter.budget("acme", 2, of="requests")
    team.meter.credit("acme", "1000000000000000000000000000000")
    client = team.openai()

    with team.meter.customer("acme"):
        for _ in range(2):
            client.chat.completions.create(**CHAT)
        with pytest.raises(BudgetExceeded, match="2 of 2 requests is spent"):
            client.chat.completions.create(**CHAT)


def test_fields_that_were_not_given_do_not_count(small):
    """Anthropic's SDK leaves objects of its own where nothing was given."""
    small.meter.budget("acme", "0.01", enforce="strict")

    with small.meter.customer("acme"):
        small.anthropic().messages.create(model="claude-sonnet-4-6", max_tokens=1, messages=HELLO)

    assert small.requests == 1


def test_tasks_that_worker_threads_wait_for_can_still_hold(small):
    """As FastAPI runs sync endpoints: all of anyio's threads wait for the event loop, which needs one to hold."""
    small.meter.budget("acme", 10_000, of="requests")
    client = small.async_openai()

    async def call():
        with small.meter.customer("acme"):
            await client.chat.completions.create(**CHAT)

    async def main():
        await call()
        start = threading.Barrier(40)

        def endpoint():
            start.wait()
            anyio.from_thread.run(call)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(40):
                    group.start_soon(anyio.to_thread.run_sync, endpoint)
        await client.close()

    anyio.run(main)
    assert small.requests == 41


def test_calls_without_a_customer_may_be_refused(team):
    """Whoever forgets to say for whom a call is gets past every other cap."""
    team.meter.budget("", 0, of="requests", name="nobody's")
    client = team.openai()

    with pytest.raises(BudgetExceeded) as refused:
        client.chat.completions.create(**CHAT)
    with team.meter.customer("acme"):
        client.chat.completions.create(**CHAT)

    assert (refused.value.scope, team.requests) == ("no customer", 1)
    assert refused.value.command == "token-meter budgets set LIMIT --for customer= --per month --of requests"
    team.meter.budget("", 5, of="requests")
    client.chat.completions.create(**CHAT)
    assert [standing.spent for standing in team.meter.budgets.standings("nobody's")] == [1]
    team.meter.budget("", "1", name="money")
    assert [standing.spent > 0 for standing in team.meter.budgets.standings("money")] == [True], "as recorded before"
