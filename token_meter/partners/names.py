"""Who served a call, in our word for it: each partner has names of its own for the same providers."""

from __future__ import annotations

from typing import Final

_NAMES: Final = {
    "openai": "text-completion-openai custom_openai aiohttp_openai chatgpt",
    "azure": "azure_ai azure_text azure-openai azure-ai azureopenai azure-ai-foundry",
    "anthropic": "anthropic_text",
    "google": "gemini google-ai-studio google_ai_studio palm",
    "vertex": "vertex_ai vertex_ai_beta vertex-ai vertexai google-vertex google-vertex-ai google-vertex-anthropic "
              "vertexanthropic",
    "bedrock": "aws-bedrock amazon-bedrock bedrock_converse bedrock_mantle",
    "mistral": "codestral text-completion-codestral mistralai mistral-ai",
    "cohere": "cohere_chat",
    "deepseek": "",
    "xai": "x-ai grok",
    "groq": "",
    "together": "together_ai togetherai together-ai",
    "fireworks": "fireworks_ai fireworks-ai fireworksai",
    "deepinfra": "",
    "cerebras": "",
    "perplexity": "perplexity-ai perplexityai",
    "moonshot": "moonshotai moonshot-ai",
    "alibaba": "dashscope qwencloud qwen_ai_platform alibaba-cloud",
    "zhipu": "zai z-ai bigmodel z.ai",
    "nvidia": "nvidia_nim nvidia-nim",
    "sambanova": "",
    "novita": "novitaai novita-ai",
    "hyperbolic": "",
    "huggingface": "hf hugging-face",
    "voyage": "voyageai voyage-ai",
    "openrouter": "",
    "vercel": "vercel_ai_gateway vercel-ai-gateway",
    "cloudflare": "workers-ai workersai clf_ai_gateway",
    "ollama": "ollama_chat",
    "lmstudio": "lm_studio lm-studio",
}  # fmt: skip
"""Our names (the host table's), and those that partners have for the same provider."""

_ALIASES: Final = {alias: name for name, aliases in _NAMES.items() for alias in (name, *aliases.split())}


def provider_named(name: str | None) -> str | None:
    """Our name for a provider; one that is not known keeps its own, in lower case and without blanks."""
    if not name or not name.strip():
        return None
    slug = "-".join(name.lower().split())
    return _ALIASES.get(slug) or _ALIASES.get(slug.replace("-", "_")) or _ALIASES.get(slug.replace("-", "")) or slug


def bare_model(model: str | None, provider: str | None) -> str | None:
    """A model without the provider that some put before it: `bedrock/us.anthropic.…` served by `bedrock`."""
    before, slash, after = (model or "").partition("/")
    return after if slash and after and before == provider else model
