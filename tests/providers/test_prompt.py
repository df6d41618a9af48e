"""Which strings of a request are its prompt, and what is added to them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from tests.tokeniser_kit import Gated, cookbook_tokens
from token_meter.providers.prompt import prompt_tokens

BASE64 = "A" * 600
PICTURE = f"data:image/png;base64,{BASE64}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "a place"}}}


def words(text: str) -> int:
    return len(text.split())


ROWS: dict[str, tuple[dict[str, Any], int | None]] = {
    "a message: 3, its role, its text, 3 for the reply": ({"messages": [{"role": "user", "content": "a b c"}]}, 10),
    "a name: 1 more": ({"messages": [{"role": "user", "content": "a b c", "name": "joe"}]}, 12),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a b"}, {"type": "text", "text": "c"}]}]},
        10,
    ),
    "a picture is a fixed amount": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]},
        92,
    ),
    "and so is one that is elsewhere": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a b"}]}]},
        92,
    ),
    "sound": (
        {"messages": [{"role": "user", "content": [{"input_audio": {"data": BASE64, "format": "wav"}}]}]},
        92,
    ),
    "a file": ({"input": [{"role": "user", "content": [{"file_data": PICTURE, "filename": "a.pdf"}]}]}, 93),
    "base64 in running text is text": ({"input": f"see {PICTURE}"}, 9),
    "short base64 is text": ({"messages": [{"role": "user", "content": [{"data": "AAAA"}]}]}, 8),
    "tool calls, without their ids": (
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "call 1", "type": "function", "function": {"name": "weather", "arguments": "{} {}"}}]}]},
        10,
    ),
    "a text of the responses API is a message of the user": ({"input": "a b c"}, 10),
    "instructions are one too": ({"input": "a b c", "instructions": "be kind"}, 16),
    "tools: their strings and the names of properties": (
        {"messages": [], "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
         "input": "a"},
        8 + 7,
    ),
    "a plain prompt": ({"prompt": "a b c"}, 3),
    "prompts": ({"prompt": ["a b c", "d"]}, 4),
    "a prompt of tokens": ({"prompt": [1, 2, 3]}, 3),
    "prompts of tokens": ({"prompt": [[1, 2, 3], [4]]}, 4),
    "no prompt": ({"model": "gpt-4o", "metadata": {"note": "a b c"}}, None),
    "a prompt that is kept by the provider": ({"prompt": {"id": "pmpt_1"}}, None),
    "nonsense": ({"messages": ["a b", 7, None, {"content": {"role": 1}}], "input": 3, "tools": True}, 17),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_is_counted(name: str) -> None:
    request, tokens = ROWS[name]

    assert prompt_tokens(request, words) == tokens


texts = st.text(max_size=20)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": texts}, optional={"name": texts}),
    min_size=1,
)


@properties(max_examples=50)
@given(messages)
def test_it_is_the_cookbooks_count(messages: list[dict[str, Any]]) -> None:
    encoding = Gated()

    counted = prompt_tokens({"messages": messages}, lambda text: len(encoding.encode_ordinary(text)))

    assert counted == cookbook_tokens(messages, encoding)


def test_a_request_may_nest_deeply() -> None:
    content: Any = "a b"
    for _ in range(50_000):
        content = [content]

    assert prompt_tokens({"messages": [{"role": "user", "content": content}]}, words) == 9
