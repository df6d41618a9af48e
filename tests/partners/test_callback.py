"""LiteLLM's callback: what LiteLLM hands over is recorded once, and nothing is ever raised into LiteLLM."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.partners.kit import SPEND_LOG, metering, varied
from token_meter import Meter, Usage
from token_meter.partners import LiteLLMCallback, import_records
from token_meter.testing import LoopbackProvider

BEGAN, ENDED = datetime(2026, 11, 20, 10, 0, 0), datetime(2026, 11, 20, 10, 0, 2)  # noqa: DTZ001 - as LiteLLM gives them


def payload(**fields: Any) -> dict[str, Any]:
    """A `StandardLoggingPayload` of the same call as `SPEND_LOG`."""
    row = varied(SPEND_LOG, startTime=1795168800.0, endTime=1795168802.5, cache_hit=None, **fields)
    row["id"] = row.pop("request_id")
    return row


def handed_over(**more: Any) -> dict[str, Any]:
    """What LiteLLM calls a callback with."""
    kwargs = {
        "standard_logging_object": payload(),
        "litellm_params": {"metadata": {"tenant": "t1"}},
        "user": "u1",
        **more,
    }
    return {"kwargs": kwargs, "response_obj": SimpleNamespace(), "start_time": BEGAN, "end_time": ENDED}


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Meter]:
    with metering(tmp_path) as meter:
        yield meter


def test_a_call_is_recorded_when_it_ends_and_is_the_same_event_as_its_spend_log(meter: Meter) -> None:
    callback = LiteLLMCallback(meter)

    callback.log_success_event(**handed_over())
    asyncio.run(callback.async_log_success_event(**handed_over()))
    import_records(meter, "litellm", [SPEND_LOG])

    (event,) = meter.events()
    assert event.usage == Usage(
        input=500, cache_read=300, cache_write_5m=50, cache_write_1h=150, output=380, reasoning=120
    )
    assert (callback.report.events, callback.report.duplicates) == (1, 1)
    assert meter.ledger.conflicts() == []


@pytest.mark.parametrize(
    ("field", "customer"),
    [
        (None, "acme"),
        ("end_user", "acme"),
        ("metadata.tenant", "t1"),
        ("metadata.spend_logs_metadata.tenant", "globex"),
        ("user", "default_user_id"),
        (lambda row: row["metadata"]["tenant"].upper(), "T1"),
    ],
)
def test_the_customer_is_looked_up_in_the_payload_and_the_calls_own_metadata(
    meter: Meter, field: Any, customer: str
) -> None:
    LiteLLMCallback(meter, customer_field=field, dimensions={"team": "team_id"}).log_success_event(**handed_over())

    (event,) = meter.events()
    assert (event.customer, event.dimensions) == (customer, {"team": "team-1"})


def test_without_an_end_user_the_calls_user_is_the_customer(meter: Meter) -> None:
    call = handed_over(standard_logging_object=payload(end_user=None, user=None))

    LiteLLMCallback(meter).log_success_event(**call)

    assert [event.customer for event in meter.events()] == ["u1"]


def test_a_failed_call_without_tokens_is_counted_and_not_recorded(meter: Meter) -> None:
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "spend": 0, "metadata": {}}
    callback = LiteLLMCallback(meter)

    callback.log_failure_event(**handed_over(standard_logging_object=payload(status="failure", **nothing)))
    asyncio.run(callback.async_log_failure_event(**handed_over(standard_logging_object=payload(status="failure"))))

    assert [event.status for event in meter.events()] == ["partial"]
    assert callback.report.skipped == {"failed before anything was consumed": 1}


def test_without_litellms_payload_the_answer_is_read(meter: Meter) -> None:
    answer = SimpleNamespace(
        model_dump=lambda: {
            "id": "chatcmpl-9",
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    )
    kwargs = {"model": "gpt-4o", "custom_llm_provider": "openai", "litellm_call_id": "c-9", "call_type": "completion"}

    LiteLLMCallback(meter).log_success_event(kwargs, answer, BEGAN, ENDED)

    (event,) = meter.events()
    assert (event.usage, event.response_id, event.provider) == (Usage(input=7, output=3), "chatcmpl-9", "openai")


@pytest.mark.parametrize(
    "kwargs",
    [
        None,
        7,
        {},
        {"standard_logging_object": {"id": "x", "call_type": "completion", "prompt_tokens": "NaN"}},
        {"standard_logging_object": {"id": "x", "metadata": 7}},
        {"litellm_params": {"metadata": object()}},
    ],
)
def test_whatever_litellm_hands_over_nothing_is_raised_and_it_is_counted(meter: Meter, kwargs: Any) -> None:
    callback = LiteLLMCallback(meter)

    callback.log_success_event(kwargs, object(), None, object())

    assert meter.events() == []
    assert sum(meter.health().problems.values()) == 1


def test_a_function_that_fails_is_a_problem_and_not_an_error_in_litellm(meter: Meter) -> None:
    LiteLLMCallback(meter, customer_field=lambda row: 1 / 0).log_success_event(**handed_over())

    assert meter.events() == []
    assert sum(meter.health().problems.values()) == 1


def test_many_threads_may_call_it(meter: Meter) -> None:
    callback = LiteLLMCallback(meter)

    def call(number: int) -> None:
        for place in range(20):
            name = f"{number}-{place}"
            callback.log_success_event(
                **handed_over(standard_logging_object=payload(request_id=name, litellm_call_id=name))
            )

    threads = [threading.Thread(target=call, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(meter.events()) == 100
    assert callback.report.events == 100


def test_it_works_where_litellm_is_not_installed(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['litellm'] = None\n"  # what a missing package is to an import
        "from token_meter import Meter\n"
        "from token_meter.partners import LiteLLMCallback\n"
        "with Meter(sys.argv[1]) as meter:\n"
        "    print(type(LiteLLMCallback(meter)).__mro__[1].__name__)\n"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "usage.db")], capture_output=True, text=True, check=True
    )

    assert ran.stdout == "object\n"


# ---- the real LiteLLM, in a process of its own: it leaves threads, loops and sockets behind -----------------------

PROGRAM = """
import asyncio, json, sys, time
import litellm
from litellm.integrations.custom_logger import CustomLogger
from token_meter import Meter
from token_meter.partners import LiteLLMCallback

ledger, url, anthropic_url = sys.argv[1:]
messages = [{"role": "user", "content": "the secret of the prompt"}]
told = {"messages": messages, "api_key": "none", "metadata": {"tenant": "acme"}, "user": "u1"}
where = {"model": "openai/gpt-4o-mini", "api_base": url, **told}

with Meter(ledger) as meter:
    callback = LiteLLMCallback(meter, customer_field="metadata.tenant", dimensions={"user": "user"})
    assert isinstance(callback, CustomLogger) and isinstance(callback, LiteLLMCallback)
    litellm.callbacks = [callback]

    def until(count):  # callbacks are called in other threads, a moment later
        deadline = time.monotonic() + 20
        while callback.report.events < count and time.monotonic() < deadline:
            time.sleep(0.02)

    async def asked():
        answer = await litellm.acompletion(**where)
        while callback.report.events < 3:
            await asyncio.sleep(0.02)
        return answer

    plain = litellm.completion(**where)
    until(1)
    chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **where))
    until(2)
    later = asyncio.run(asyncio.wait_for(asked(), 20))
    claude = litellm.completion(model="anthropic/claude-sonnet-4-5", api_base=anthropic_url, **told)
    until(4)
    try:
        litellm.completion(mock_response=RuntimeError("broken"), **where)
    except Exception:
        pass
    deadline = time.monotonic() + 20
    while not callback.report.skipped and time.monotonic() < deadline:
        time.sleep(0.02)
    print(json.dumps({
        "plain": plain.model_dump(), "later": later.model_dump(), "claude": claude.id, "streamed": chunks[-1].id,
        "events": [event.to_json() for event in meter.events()],
        "skipped": dict(callback.report.skipped), "problems": meter.health().problems,
    }, default=str))
"""


@pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="needs LiteLLM: pip install litellm")
def test_the_real_litellm_calls_it(tmp_path: Path) -> None:
    openai = Usage(input=45, cache_read=40, input_audio=10, cache_write_30m=5, output=22, reasoning=20, output_audio=8)
    anthropic = Usage(input=10, cache_read=300, cache_write_1h=150, cache_write_5m=50, output=30)
    with LoopbackProvider() as provider:
        provider.usage(openai, api="openai.chat")
        provider.usage(anthropic, api="anthropic.messages")
        urls = (provider.openai_url, provider.anthropic_url)
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "usage.db"), *urls],
            capture_output=True,
            text=True,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            timeout=100,
        )
        billed = provider.total()

    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    events = {event["response_id"]: event for event in said["events"]}
    assert len(events) == len(said["events"]) == 4
    assert set(events) == {said["plain"]["id"], said["later"]["id"], said["streamed"], said["claude"]}
    assert said["skipped"] == {"failed before anything was consumed": 1}
    assert said["problems"] == {}
    for event in said["events"]:
        assert (event["customer"], event["dimensions"]) == ("acme", {"user": "u1"})
        assert (event["operation"], event["status"]) == ("chat", "complete")
        assert Usage(event["usage"]) == {"openai": openai, "anthropic": anthropic}[event["provider"]]
    assert sum((Usage(event["usage"]) for event in said["events"]), Usage()) == billed
    assert "secret of the prompt" not in ran.stdout
