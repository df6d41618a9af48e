"""Who answers behind a base URL: provider by host, and where `stream_options.include_usage` is accepted.

Many providers speak OpenAI's dialect, so the SDK says nothing about who is billed; the host does. An unknown host
is taken for the SDK's own vendor (most are proxies in front of it), its name stands on every event.
Sources: each provider's OpenAI-compatibility page; `accepts_include_usage` only where it is documented.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from token_meter.providers.base import Host

_EXACT: Final = {
    "api.openai.com": Host("openai", True),
    "eu.api.openai.com": Host("openai", True),
    "us.api.openai.com": Host("openai", True),
    "api.anthropic.com": Host("anthropic", True),
    "generativelanguage.googleapis.com": Host("google", True),
    "aiplatform.googleapis.com": Host("vertex", True),
    "openrouter.ai": Host("openrouter", True),
    "api.groq.com": Host("groq", True),
    "api.deepinfra.com": Host("deepinfra", True),
    "api.mistral.ai": Host("mistral"),
    "codestral.mistral.ai": Host("mistral"),
    "api.deepseek.com": Host("deepseek", True),
    "api.x.ai": Host("xai", True),
    "api.together.xyz": Host("together", True),
    "api.together.ai": Host("together", True),
    "api.fireworks.ai": Host("fireworks", True),
    "api.cerebras.ai": Host("cerebras", True),
    "api.perplexity.ai": Host("perplexity"),
    "api.cohere.ai": Host("cohere"),
    "api.cohere.com": Host("cohere"),
    "api.moonshot.ai": Host("moonshot", True),
    "api.moonshot.cn": Host("moonshot", True),
    "dashscope.aliyuncs.com": Host("alibaba", True),
    "dashscope-intl.aliyuncs.com": Host("alibaba", True),
    "api.z.ai": Host("zhipu"),
    "open.bigmodel.cn": Host("zhipu"),
    "integrate.api.nvidia.com": Host("nvidia", True),
    "api.sambanova.ai": Host("sambanova", True),
    "api.novita.ai": Host("novita", True),
    "api.hyperbolic.xyz": Host("hyperbolic"),
    "router.huggingface.co": Host("huggingface"),
    "api.voyageai.com": Host("voyage"),
    "ai-gateway.vercel.sh": Host("vercel", True),
    "gateway.ai.cloudflare.com": Host("cloudflare"),
    "localhost:11434": Host("ollama", True),
    "127.0.0.1:11434": Host("ollama", True),
    "localhost:1234": Host("lmstudio", True),
    "127.0.0.1:1234": Host("lmstudio", True),
}

_SUFFIXES: Final = (
    (".openai.azure.com", Host("azure", True)),
    (".cognitiveservices.azure.com", Host("azure", True)),
    (".services.ai.azure.com", Host("azure", True)),
    (".models.ai.azure.com", Host("azure")),
    ("-aiplatform.googleapis.com", Host("vertex", True)),
    (".aiplatform.googleapis.com", Host("vertex", True)),
    (".amazonaws.com", Host("bedrock")),
    (".api.aws", Host("bedrock")),
)


@lru_cache(maxsize=1024)
def host_named(name: str) -> Host | None:
    """The row for a host (`name` or `name:port`, lower case), or None if it is not known."""
    known = _EXACT.get(name) or _EXACT.get(name.partition(":")[0])
    if known is not None:
        return known
    plain = name.partition(":")[0]
    return next((host for suffix, host in _SUFFIXES if plain.endswith(suffix)), None)
