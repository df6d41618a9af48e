"""The calls that the comparison makes: what an application does with the three SDKs, as it would be written.

Each is a function of a client and of `metered`, which is put around the SDK's own function as a decorator, for a tool
that works like that; for one that wraps the client it does nothing. A call returns what the application sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

GPT: Final = "gpt-5"
CLAUDE: Final = "claude-sonnet-4-5"
GEMINI: Final = "gemini-2.5-flash"
EMBEDDING: Final = "text-embedding-3-small"
PROMPT: Final = "Say something."
LONG: Final = "The same long context as before. " * 300
"""Long enough for OpenAI's and Gemini's own caches; Anthropic's is asked for."""

Metered = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One row: the SDK, what is shown, and what is done.

    `is_async` calls get the client's asynchronous form; one that `fails` is answered with status 400; of one that is
    `cut` the application does not want the rest, which the provider bills all the same.
    """

    sdk: str
    shown: str
    run: Callable[[Any, Metered], Any]
    is_async: bool = False
    fails: bool = False
    cut: bool = False

    @property
    def name(self) -> str:
        return f"{self.sdk}: {self.shown}"


def messages(text: str = PROMPT) -> Any:
    return [{"role": "user", "content": text}]


# ---- openai ----


def chat(client: Any, metered: Metered) -> Any:
    return metered(client.chat.completions.create)(model=GPT, messages=messages()).choices[0].message.content


def chat_cached(client: Any, metered: Metered) -> Any:
    return metered(client.chat.completions.create)(model=GPT, messages=messages(LONG)).choices[0].message.content


def chat_reasoning(client: Any, metered: Metered) -> Any:
    made = metered(client.chat.completions.create)(model=GPT, messages=messages(), reasoning_effort="medium")
    return made.choices[0].message.content


def chat_stream(client: Any, metered: Metered) -> Any:
    stream = metered(client.chat.completions.create)(model=GPT, messages=messages(), stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def chat_stream_naive(client: Any, metered: Metered) -> Any:
    stream = metered(client.chat.completions.create)(model=GPT, messages=messages(), stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def chat_with_stream(client: Any, metered: Metered) -> Any:
    with metered(client.chat.completions.create)(model=GPT, messages=messages(), stream=True) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def chat_early_close(client: Any, metered: Metered) -> Any:
    stream = metered(client.chat.completions.create)(model=GPT, messages=messages(), stream=True)
    for _ in range(3):
        next(stream)
    stream.close()


def chat_early_break(client: Any, metered: Metered) -> Any:
    stream = metered(client.chat.completions.create)(model=GPT, messages=messages(), stream=True)
    for place, _ in enumerate(stream):
        if place == 2:
            break


def chat_parse(client: Any, metered: Metered) -> Any:
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    made = metered(client.chat.completions.parse)(model=GPT, messages=messages(), response_format=Place)
    return made.choices[0].message.parsed.city


def chat_helper(client: Any, metered: Metered) -> Any:
    with metered(client.chat.completions.stream)(model=GPT, messages=messages()) as stream:
        return "".join(event.delta for event in stream if event.type == "content.delta")


def chat_options(client: Any, metered: Metered) -> Any:
    return chat(client.with_options(timeout=30), metered)


def chat_raw(client: Any, metered: Metered) -> Any:
    made = metered(client.chat.completions.with_raw_response.create)(model=GPT, messages=messages())
    return made.parse().choices[0].message.content


def chat_error(client: Any, metered: Metered) -> Any:
    from openai import APIStatusError

    with suppress(APIStatusError):
        chat(client, metered)


def embeddings(client: Any, metered: Metered) -> Any:
    return len(metered(client.embeddings.create)(model=EMBEDDING, input=["one", "two"]).data)


def responses(client: Any, metered: Metered) -> Any:
    return metered(client.responses.create)(model=GPT, input=PROMPT).output_text


def responses_stream(client: Any, metered: Metered) -> Any:
    stream = metered(client.responses.create)(model=GPT, input=PROMPT, stream=True)
    return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


def responses_helper(client: Any, metered: Metered) -> Any:
    with metered(client.responses.stream)(model=GPT, input=PROMPT) as stream:
        return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


def chat_async(client: Any, metered: Metered) -> Any:
    async def ask() -> Any:
        made = await metered(client.chat.completions.create)(model=GPT, messages=messages())
        return made.choices[0].message.content

    return asyncio.run(ask())


def chat_async_stream(client: Any, metered: Metered) -> Any:
    async def ask() -> Any:
        stream = await metered(client.chat.completions.create)(model=GPT, messages=messages(), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    return asyncio.run(ask())


# ---- anthropic ----


def message(client: Any, metered: Metered) -> Any:
    return metered(client.messages.create)(model=CLAUDE, max_tokens=200, messages=messages()).content[0].text


def message_cached(client: Any, metered: Metered) -> Any:
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    create = metered(client.messages.create)
    for _ in range(2):  # the first call writes the cache, the second reads it
        made = create(model=CLAUDE, max_tokens=200, system=system, messages=messages())
    return made.content[0].text


def message_stream(client: Any, metered: Metered) -> Any:
    stream = metered(client.messages.create)(model=CLAUDE, max_tokens=200, messages=messages(), stream=True)
    return "".join(event.delta.text for event in stream if event.type == "content_block_delta")


def message_with_stream(client: Any, metered: Metered) -> Any:
    with metered(client.messages.create)(model=CLAUDE, max_tokens=200, messages=messages(), stream=True) as stream:
        return "".join(event.delta.text for event in stream if event.type == "content_block_delta")


def message_helper(client: Any, metered: Metered) -> Any:
    with metered(client.messages.stream)(model=CLAUDE, max_tokens=200, messages=messages()) as stream:
        return "".join(stream.text_stream)


def message_early_close(client: Any, metered: Metered) -> Any:
    stream = metered(client.messages.create)(model=CLAUDE, max_tokens=200, messages=messages(), stream=True)
    for _ in range(4):
        next(iter(stream))
    stream.close()


def message_options(client: Any, metered: Metered) -> Any:
    return message(client.with_options(timeout=30), metered)


def message_raw(client: Any, metered: Metered) -> Any:
    create = metered(client.messages.with_raw_response.create)
    return create(model=CLAUDE, max_tokens=200, messages=messages()).parse().content[0].text


def message_beta(client: Any, metered: Metered) -> Any:
    return metered(client.beta.messages.create)(model=CLAUDE, max_tokens=200, messages=messages()).content[0].text


def message_error(client: Any, metered: Metered) -> Any:
    from anthropic import APIStatusError

    with suppress(APIStatusError):
        message(client, metered)


def message_async(client: Any, metered: Metered) -> Any:
    async def ask() -> Any:
        made = await metered(client.messages.create)(model=CLAUDE, max_tokens=200, messages=messages())
        return made.content[0].text

    return asyncio.run(ask())


def message_async_stream(client: Any, metered: Metered) -> Any:
    async def ask() -> Any:
        async with metered(client.messages.stream)(model=CLAUDE, max_tokens=200, messages=messages()) as stream:
            return "".join([text async for text in stream.text_stream])

    return asyncio.run(ask())


# ---- google-genai ----


def generate(client: Any, metered: Metered) -> Any:
    return metered(client.models.generate_content)(model=GEMINI, contents=PROMPT).text


def generate_cached(client: Any, metered: Metered) -> Any:
    return metered(client.models.generate_content)(model=GEMINI, contents=LONG).text


def generate_stream(client: Any, metered: Metered) -> Any:
    stream = metered(client.models.generate_content_stream)(model=GEMINI, contents=PROMPT)
    return "".join(chunk.text or "" for chunk in stream)


def generate_early_close(client: Any, metered: Metered) -> Any:
    stream = metered(client.models.generate_content_stream)(model=GEMINI, contents=PROMPT)
    for _ in range(3):
        next(stream)
    stream.close()


def generate_chat(client: Any, metered: Metered) -> Any:
    return metered(client.chats.create(model=GEMINI).send_message)(PROMPT).text


def embed_content(client: Any, metered: Metered) -> Any:
    return len(metered(client.models.embed_content)(model="gemini-embedding-001", contents=["one", "two"]).embeddings)


def generate_error(client: Any, metered: Metered) -> Any:
    from google.genai.errors import APIError

    with suppress(APIError):
        generate(client, metered)


def generate_async(client: Any, metered: Metered) -> Any:
    async def ask() -> Any:
        return (await metered(client.aio.models.generate_content)(model=GEMINI, contents=PROMPT)).text

    return asyncio.run(ask())


def generate_async_stream(client: Any, metered: Metered) -> Any:
    async def ask() -> Any:
        stream = await metered(client.aio.models.generate_content_stream)(model=GEMINI, contents=PROMPT)
        return "".join([chunk.text or "" async for chunk in stream])

    return asyncio.run(ask())


CASES: Final = (
    Case("openai", "`chat.completions.create`", chat),
    Case("openai", "… with cached tokens", chat_cached),
    Case("openai", "… with reasoning", chat_reasoning),
    Case("openai", "… `stream=True`", chat_stream),
    Case("openai", "… `stream=True`, reading `chunk.choices[0]`", chat_stream_naive),
    Case("openai", "… `with create(stream=True)`", chat_with_stream),
    Case("openai", "… stream closed early", chat_early_close, cut=True),
    Case("openai", "… `break` out of a stream", chat_early_break, cut=True),
    Case("openai", "`chat.completions.parse`", chat_parse),
    Case("openai", "`chat.completions.stream`", chat_helper),
    Case("openai", "`with_options().chat…create`", chat_options),
    Case("openai", "`with_raw_response.create`", chat_raw),
    Case("openai", "`embeddings.create`", embeddings),
    Case("openai", "`responses.create`", responses),
    Case("openai", "… `stream=True`", responses_stream),
    Case("openai", "`responses.stream`", responses_helper),
    Case("openai", "async `chat.completions.create`", chat_async, is_async=True),
    Case("openai", "… `stream=True`", chat_async_stream, is_async=True),
    Case("openai", "a call that fails (400)", chat_error, fails=True),
    Case("anthropic", "`messages.create`", message),
    Case("anthropic", "… writing and reading a cache", message_cached),
    Case("anthropic", "… `stream=True`", message_stream),
    Case("anthropic", "… `with create(stream=True)`", message_with_stream),
    Case("anthropic", "… stream closed early", message_early_close, cut=True),
    Case("anthropic", "`messages.stream`", message_helper),
    Case("anthropic", "`with_options().messages.create`", message_options),
    Case("anthropic", "`with_raw_response.create`", message_raw),
    Case("anthropic", "`beta.messages.create`", message_beta),
    Case("anthropic", "async `messages.create`", message_async, is_async=True),
    Case("anthropic", "async `messages.stream`", message_async_stream, is_async=True),
    Case("anthropic", "a call that fails (400)", message_error, fails=True),
    Case("google-genai", "`generate_content`", generate),
    Case("google-genai", "… with cached tokens", generate_cached),
    Case("google-genai", "`generate_content_stream`", generate_stream),
    Case("google-genai", "… closed early", generate_early_close, cut=True),
    Case("google-genai", "`chats.…send_message`", generate_chat),
    Case("google-genai", "`embed_content`", embed_content),
    Case("google-genai", "async `generate_content`", generate_async),
    Case("google-genai", "async `generate_content_stream`", generate_async_stream),
    Case("google-genai", "a call that fails (400)", generate_error, fails=True),
)
