"""No prompt, no answer and no key ends up in a file or in the log, whatever happens to the call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google import genai

from token_meter import Meter, MeterEvent
from token_meter.sinks import JsonlSink
from token_meter.testing import LoopbackProvider

PROMPT = "rosebud-in-the-prompt"
ANSWER = "rosebud-in-the-answer"
KEY = "sk-rosebud-the-key"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]


class Broken:
    """A sink whose error quotes everything it can lay hands on."""

    name = "broken"

    def send(self, events: Sequence[MeterEvent]) -> None:
        raise RuntimeError(f"{PROMPT} {ANSWER} {KEY}")


def call_everything(meter: Meter, provider: LoopbackProvider) -> None:
    """Plain, streamed, abandoned, refused, cut and hostile calls of the three SDKs."""
    for url in (provider.url, provider.url_with(cut=3), provider.url_with(weird="usage_extra")):
        chat = meter.wrap(openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0))
        claude = meter.wrap(anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0))
        gemini = meter.wrap(genai.Client(api_key=KEY, http_options={"base_url": url}))
        with chat, claude:
            chat.responses.create(model="gpt-5", input=PROMPT, metadata={"note": PROMPT})
            list(chat.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True))
            with chat.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True) as stream:
                next(stream)
            claude.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=MESSAGES, system=PROMPT)
            list(claude.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=MESSAGES, stream=True))
            gemini.models.generate_content(model="gemini-2.5-flash", contents=PROMPT)
            list(gemini.models.generate_content_stream(model="gemini-2.5-flash", contents=PROMPT))
    refused = meter.wrap(openai.OpenAI(base_url=provider.url_with(fail="400x0") + "/v1", api_key=KEY, max_retries=0))
    with refused, pytest.raises(openai.BadRequestError):
        refused.responses.create(model="gpt-5", input=PROMPT)
    slow = provider.url_with(delay=0.5) + "/v1"
    late = meter.wrap(openai.OpenAI(base_url=slow, api_key=KEY, max_retries=0, timeout=httpx2.Timeout(0.1)))
    with late, pytest.raises(openai.APITimeoutError):
        late.responses.create(model="gpt-5", input=PROMPT)


def test_nothing_that_was_said_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="token_meter")

    with (
        LoopbackProvider() as provider,
        Meter(tmp_path / "usage.db", JsonlSink(tmp_path / "usage.jsonl"), Broken(), journal=tmp_path / "j") as meter,
    ):
        provider.answer(f"{ANSWER} {ANSWER}")
        meter.allow_include_usage("127.0.0.1:*")
        with meter.customer("acme"):
            call_everything(meter, provider)
        meter.flush(timeout=2)
        told = meter.health().prometheus() + str(meter.health()) + caplog.text
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

        assert len(meter.events()) >= 20
        assert {path.name for path in files} >= {"usage.db", "usage.jsonl", "problems.jsonl"}
        assert "sink broken" in told
        for secret in (PROMPT, ANSWER, KEY):
            assert secret not in told
            assert not [path.name for path, data in files.items() if secret.encode() in data]
