"""Who made a model, from its name: `claude-…` is Anthropic's wherever it is served."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_AUTHORS: Final = {
    "openai": "openai", "anthropic": "anthropic", "google": "google", "meta-llama": "meta", "meta": "meta",
    "mistralai": "mistral", "mistral": "mistral", "deepseek": "deepseek", "deepseek-ai": "deepseek", "x-ai": "xai",
    "xai": "xai", "qwen": "alibaba", "cohere": "cohere", "moonshotai": "moonshot", "amazon": "amazon",
    "microsoft": "microsoft", "nvidia": "nvidia", "z-ai": "zhipu", "zai-org": "zhipu", "minimax": "minimax",
    "ai21": "ai21", "perplexity": "perplexity",
}  # fmt: skip

_FAMILIES: Final = (
    ("openai", r"gpt-|chatgpt-|o[1-9](-|$)|text-embedding-|text-moderation|omni-moderation|dall-e|whisper|tts-|"
               r"davinci|babbage|codex-|computer-use-preview|sora|ft:"),
    ("anthropic", r"claude"),
    ("google", r"gemini|gemma|imagen|veo|palm|text-bison|chat-bison|learnlm|embedding-00|lyria"),
    ("meta", r"llama|meta-llama"),
    ("mistral", r"mistral|mixtral|codestral|ministral|pixtral|magistral|voxtral|devstral|open-mi"),
    ("deepseek", r"deepseek"),
    ("xai", r"grok"),
    ("alibaba", r"qwen|qwq"),
    ("cohere", r"command|c4ai|embed-|rerank-"),
    ("moonshot", r"kimi|moonshot"),
    ("amazon", r"nova|titan"),
    ("zhipu", r"glm"),
    ("perplexity", r"sonar"),
    ("microsoft", r"phi-|mai-"),
    ("voyage", r"voyage"),
)  # fmt: skip


@lru_cache(maxsize=4096)
def publisher_of(model: str | None) -> str | None:
    """The publisher of a model id (`gpt-5`, `anthropic/claude-…`, `us.anthropic.claude-…`), None if not known."""
    if not model:
        return None
    name = model.lower().removeprefix("models/")
    author, slash, tail = name.rpartition("/")
    if slash and (known := _AUTHORS.get(author.rpartition("/")[2])):
        return known
    for part in (tail, *tail.split(".")):
        if known := _AUTHORS.get(part):
            return known
        for publisher, pattern in _FAMILIES:
            if re.match(pattern, part):
                return publisher
    return None
