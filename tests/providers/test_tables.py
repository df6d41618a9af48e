"""The tables: who answers behind a host, who made a model, and which requests bill."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.kit import properties
from token_meter.providers import SDKS, anthropic, google, openai, supported
from token_meter.providers.hosts import host_named
from token_meter.providers.publishers import publisher_of

PUBLISHERS = {
    "gpt-5": "openai", "gpt-4o-2024-08-06": "openai", "o3": "openai", "o4-mini": "openai", "ft:gpt-4o:acme::x": "openai",
    "text-embedding-3-small": "openai", "whisper-1": "openai", "dall-e-3": "openai", "gpt-image-1": "openai",
    "claude-sonnet-4-5-20250929": "anthropic", "us.anthropic.claude-sonnet-4-6-v1:0": "anthropic",
    "anthropic/claude-3.5-haiku": "anthropic", "publishers/anthropic/models/claude-x": "anthropic",
    "gemini-2.5-flash": "google", "models/gemini-2.5-pro": "google", "google/gemma-3-27b-it": "google",
    "meta-llama/Llama-3.3-70B-Instruct": "meta", "llama3.2": "meta", "us.meta.llama3-1-8b-instruct-v1:0": "meta",
    "accounts/fireworks/models/llama-v3p1-8b-instruct": "meta", "mistral-large-latest": "mistral",
    "mistralai/Mixtral-8x7B": "mistral", "deepseek-chat": "deepseek", "deepseek-ai/DeepSeek-V3": "deepseek",
    "grok-4": "xai", "x-ai/grok-3": "xai", "qwen3-max": "alibaba", "Qwen/Qwen2.5-72B": "alibaba", "command-r": "cohere",
    "amazon.nova-pro-v1:0": "amazon", "sonar-pro": "perplexity", "kimi-k2": "moonshot", "glm-4.6": "zhipu",
    "our-deployment": None, "": None, None: None, "octopus": None, "foo-gpt-5": None,
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHERS)
def test_a_publisher_follows_from_the_name_of_a_model(model: str | None) -> None:
    assert publisher_of(model) == PUBLISHERS[model]


@properties(max_examples=60)
@given(st.text())
def test_any_name_has_a_publisher_or_none(model: str) -> None:
    assert publisher_of(model) is None or str(publisher_of(model)).isalpha()


@properties(max_examples=100)
@given(st.text(), st.integers(min_value=1, max_value=65535))
def test_any_host_is_known_or_not(host: str, port: int) -> None:
    known = host_named(host)

    assert known is None or known.provider
    assert host_named(f"api.openai.com:{port}") == host_named("api.openai.com")
    assert host_named(f"x{host}.openai.azure.com.example") is None


def test_a_port_of_this_machine_tells_who_listens() -> None:
    assert [known.provider for known in map(host_named, ("localhost:11434", "127.0.0.1:1234")) if known] == [
        "ollama", "lmstudio",
    ]  # fmt: skip
    assert host_named("localhost") is None and host_named("127.0.0.1:8000") is None


OPENAI = {
    ("post", "/chat/completions"): "chat", ("post", "/completions"): "completions", ("post", "/responses"): "responses",
    ("post", "/responses?beta=true"): "responses", ("post", "/responses/compact"): "responses",
    ("post", "/embeddings"): "embeddings", ("post", "/images/generations"): "images", ("post", "/images/edits"): "images",
    ("post", "/audio/transcriptions"): "audio", ("post", "/audio/translations"): "audio", ("post", "/audio/speech"): "audio",
    ("post", "/openai/deployments/ours/chat/completions?api-version=1"): "chat",
    ("post", "https://api.groq.com/openai/v1/chat/completions"): "chat", ("get", "/responses/resp_1"): "responses",
    ("get", "/chat/completions"): None, ("get", "/chat/completions/c1"): None, ("post", "/chat/completions/c1"): None,
    ("post", "/responses/input_tokens"): None, ("delete", "/responses/r"): None, ("get", "/models"): None,
    ("post", "/moderations"): None, ("post", "/files"): None, ("post", "/batches"): None, ("post", "/responses/r/cancel"): None,
    ("get", "/responses/r/input_items"): None,
}  # fmt: skip
ANTHROPIC = {
    ("post", "/v1/messages"): "messages", ("post", "/v1/messages?beta=true"): "messages",
    ("post", "/v1/messages/count_tokens"): None, ("post", "/v1/messages/count_tokens?beta=true"): None,
    ("post", "/v1/messages/batches"): None, ("get", "/v1/messages/batches/b"): None, ("get", "/v1/models"): None,
}  # fmt: skip
GOOGLE = {
    ("post", "models/gemini:generateContent"): "generate_content",
    ("post", "models/gemini:streamGenerateContent?alt=sse"): "generate_content",
    ("post", "publishers/google/models/gemini:generateContent"): "generate_content",
    ("post", "models/gemini-embedding-001:batchEmbedContents"): "embeddings",
    ("post", "models/gemini-embedding-001:embedContent"): "embeddings",
    ("post", "publishers/google/models/text-embedding-005:predict"): "embeddings",
    ("post", "publishers/google/models/imagen-4:predict"): None, ("post", "models/gemini:countTokens"): None,
    ("post", "models/gemini:computeTokens"): None, ("get", "models/gemini"): None, ("post", "cachedContents"): None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("vendor", "table"),
    [(openai, OPENAI), (anthropic, ANTHROPIC), (google, GOOGLE)],
    ids=["openai", "anthropic", "google"],
)
def test_which_requests_bill(vendor: object, table: dict[tuple[str, str], str | None]) -> None:
    for (method, path), operation in table.items():
        found = vendor.endpoint(method, path)  # type: ignore[attr-defined]
        assert (found.operation if found else None) == operation, (method, path)


@properties(max_examples=60)
@given(st.sampled_from(["post", "get", "put", ""]), st.text())
def test_any_path_bills_or_not(method: str, path: str) -> None:
    for vendor in (openai, anthropic, google):
        vendor.endpoint(method, path)
        vendor.provider_by_path(path)
    google.model_of(path)


def test_every_sdk_has_a_row() -> None:
    assert [sdk.name for sdk in SDKS] == ["openai", "anthropic", "google"]
    assert supported() == "openai, anthropic, google-genai"
