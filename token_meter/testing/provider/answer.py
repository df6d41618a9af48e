"""What the imaginary model answers and how its tokens are counted: simple rules, the same for every vendor.

Input   a token for every four bytes of the prompt's compact JSON, rounded up (`prompt_size`); media in it
count
        apart: 258 tokens for an image or a document, 263 for a video, one for every 1,600 bytes of audio.
Cache   OpenAI and Gemini: half of a prompt of 1,024 tokens or more is read from the cache, in steps of 128.
        Anthropic: what the prompt marks with `cache_control`, see `anthropic/messages.py`.
Output  a token for every four bytes of the answer, rounded up, cut off at the limit that the request sets.
Reasoning  none unless asked for: `EFFORT_TOKENS` by effort, `THINKING_TOKENS` for a thinking budget.

So all counts follow from the request; a test that wants others sets them with `LoopbackProvider.usage`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import Any, Final, NamedTuple

from token_meter.usage import Usage

TEXT: Final = (
    "Every call is counted once, where the provider's answer arrives, and written down before your program goes on. "
    "What a customer used is therefore known even if the process is killed a moment later. The tokens that were read "
    "from the cache, the ones spent on reasoning and the ones you asked for are kept apart, because each has a price "
    "of its own. An invoice adds them up, and every cent of it can be traced back to the calls that caused it."
)
EFFORT_TOKENS: Final[Mapping[str, int]] = {"low": 32, "medium": 128, "high": 512, "xhigh": 1024, "max": 2048}
THINKING_TOKENS: Final = 96
MEDIA_TOKENS: Final[Mapping[str, int]] = {"image": 258, "document": 258, "video": 263}
AUDIO_BYTES_PER_TOKEN: Final = 1600
CACHE_TOKENS_MIN: Final = 1024
CACHE_STEP: Final = 128


class Answer(NamedTuple):
    """A text in the pieces in which it is streamed; `limited` if the request's limit cut it off."""

    deltas: tuple[str, ...]
    limited: bool = False

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    @property
    def tokens(self) -> int:
        return tokens(self.text)


def tokens(text: str | bytes) -> int:
    """A token for every four bytes, rounded up."""
    return -(-len(text.encode() if isinstance(text, str) else text) // 4)


@lru_cache(maxsize=64)
def write_answer(*, words: int, size: int = 0, limit: int | None = None, text: str = TEXT) -> Answer:
    """An answer of so many words (the text is repeated if it is too short) and at least so many bytes."""
    source = text.split(" ")
    deltas = [word if not place else f" {word}" for place, word in enumerate(islice(cycle(source), max(words, 1)))]
    if (missing := size - sum(map(len, deltas))) > 0:
        share = -(-missing // len(deltas))
        deltas = [delta + "." * share for delta in deltas]
    return limit_answer(tuple(deltas), limit)


def limit_answer(deltas: tuple[str, ...], limit: int | None) -> Answer:
    """The answer up to the limit in tokens, cut inside a word if need be."""
    if limit is None or tokens("".join(deltas)) <= limit:
        return Answer(deltas)
    kept, room = [], 4 * limit
    for delta in deltas:
        piece = delta.encode()[:room].decode(errors="ignore")
        if piece:
            kept.append(piece)
        room -= len(delta.encode())
        if room <= 0:
            break
    return Answer(tuple(kept), limited=True)


def json_answer(document: Any, *, pieces: int = 4) -> Answer:
    """A JSON document as an answer, in about so many pieces: structured output and the arguments of a tool."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    step = max(1, -(-len(text) // pieces))
    return Answer(tuple(text[start : start + step] for start in range(0, len(text), step)))


def example(schema: Any) -> Any:
    """The simplest value that a JSON schema allows."""
    if not isinstance(schema, Mapping):
        return {}
    if schema.get("enum"):
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "any_of"):
        if schema.get(union):
            return example(schema[union][0])
    kind = schema.get("type", "object")
    kind = str(kind[0] if isinstance(kind, list) else kind).lower()
    if kind == "object":
        definitions = schema.get("$defs", {})
        return {name: example(_resolved(each, definitions)) for name, each in schema.get("properties", {}).items()}
    return {
        "array": [example(schema.get("items"))],
        "string": "Paris",
        "integer": 7,
        "number": 7.5,
        "boolean": True,
    }.get(kind)


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:
    reference = schema.get("$ref") if isinstance(schema, Mapping) else None
    target = definitions.get(str(reference).rsplit("/", 1)[-1], schema) if reference else schema
    return {**target, "$defs": definitions} if isinstance(target, Mapping) else target


@dataclass(frozen=True, slots=True)
class Prompt:
    """The size of a prompt in tokens, media apart."""

    text: int
    image: int = 0
    audio: int = 0
    video: int = 0
    document: int = 0

    @property
    def tokens(self) -> int:
        return self.text + self.image + self.audio + self.video + self.document

    def usage(self, *, read: int = 0) -> Usage:
        """Input as disjoint token types when `read` tokens of the text come from the cache."""
        return Usage(
            input=self.text - read,
            input_image=self.image,
            input_audio=self.audio,
            input_video=self.video,
            input_document=self.document,
            cache_read=read,
        )

    @property
    def cached(self) -> int:
        """How much of the text an implicit cache holds."""
        return self.text // 2 // CACHE_STEP * CACHE_STEP if self.tokens >= CACHE_TOKENS_MIN else 0


def prompt_size(*parts: Any) -> Prompt:
    """Count the parts of a prompt; those that are None do not count."""
    media: dict[str, int] = {}
    plain = [_without_media(part, media) for part in parts if part is not None]
    text = sum(tokens(json.dumps(part, ensure_ascii=False, separators=(",", ":"), default=str)) for part in plain)
    return Prompt(text, **media)


def _without_media(part: Any, media: dict[str, int]) -> Any:
    """The part without its media, whose tokens are added to `media`."""
    if isinstance(part, list):
        return [_without_media(each, media) for each in part]
    if not isinstance(part, Mapping):
        return part
    if kind := _medium(part):
        count = MEDIA_TOKENS.get(kind) or max(1, _data_bytes(part) // AUDIO_BYTES_PER_TOKEN)
        media[kind] = media.get(kind, 0) + count
        return {}
    return {name: _without_media(value, media) for name, value in part.items()}


_PART_TYPES: Final[Mapping[str, str]] = {
    "image": "image", "image_url": "image", "input_image": "image", "input_audio": "audio", "audio": "audio",
    "document": "document", "file": "document", "input_file": "document", "video": "video",
}  # fmt: skip
_INLINE: Final = ("inlineData", "inline_data", "fileData", "file_data")


def _medium(part: Mapping[str, Any]) -> str | None:
    """Which medium a part of a prompt is, in the words of any of the vendors."""
    if isinstance(kind := part.get("type"), str) and kind in _PART_TYPES:
        return _PART_TYPES[kind]
    inline = next((part[name] for name in _INLINE if name in part), None)
    if isinstance(inline, Mapping):
        kind = str(inline.get("mimeType", inline.get("mime_type", ""))).partition("/")[0]
        return kind if kind in ("image", "audio", "video") else "document"
    return None


def _data_bytes(part: Mapping[str, Any]) -> int:
    """How many bytes the base64 data of a part stand for."""
    holder = next((part[name] for name in ("input_audio", *_INLINE) if name in part), part)
    return len(str(holder.get("data", ""))) * 3 // 4 if isinstance(holder, Mapping) else 0


def share(total: int, part: int, parts: int) -> int:
    """How much of a total the first `part` of `parts` pieces are, so that the last one makes it whole."""
    return total * part // parts
