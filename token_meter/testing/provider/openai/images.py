"""Images: generations, edits and variations, plain and streamed. GPT image models count tokens, dall-e images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import MEDIA_TOKENS, tokens
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.openai.chat import SERVER_ERROR
from token_meter.testing.provider.openai.items import PNG
from token_meter.testing.provider.openai.usage import IMAGES, images_block
from token_meter.testing.provider.reply import Event, Reply
from token_meter.usage import Usage

API: Final = "openai.images"
OUTPUT_TOKENS: Final[Mapping[str, int]] = {"low": 272, "medium": 1056, "high": 4160}


def images(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """POST /images/generations, /images/edits and /images/variations."""
    document = exchange.document
    count = int(document.get("n") or 1)
    counted_in_tokens = exchange.model.startswith(("gpt-image", "chatgpt-image"))
    line = _bill(exchange, count, counted_in_tokens=counted_in_tokens)
    if exchange.request.streamed:
        prefix = "image_generation" if names["verb"] == "generations" else "image_edit"
        return exchange.stream(_events(exchange, prefix, line), line, errors=[Event(SERVER_ERROR, "error")])
    if not counted_in_tokens:
        urls = [{"url": f"https://images.example.com/{exchange.new_id('img-')}.png"} for _ in range(count)]
        return exchange.json({"created": exchange.now, "data": urls}, line)
    data = [{"b64_json": PNG + "A" * exchange.faults.size} for _ in range(count)]
    body = {"created": exchange.now, "background": "opaque", "data": data, "output_format": "png"}
    return exchange.json({**body, **_look(document), "usage": line.reported}, line)


def _bill(exchange: Exchange, count: int, *, counted_in_tokens: bool) -> Billed:
    if not counted_in_tokens:
        return exchange.bill(API, Usage(images=count), block=None, types=frozenset({"images"}))
    document = exchange.document
    sent = sum(each.field.startswith(("image", "mask")) for each in exchange.request.uploads) + len(
        document.get("images") or ()
    )
    usage = Usage(
        input=tokens(str(document.get("prompt") or "")),
        input_image=sent * MEDIA_TOKENS["image"],
        output_image=count * OUTPUT_TOKENS.get(str(document.get("quality")), OUTPUT_TOKENS["medium"]),
    )
    return exchange.bill(API, usage, block=images_block, types=IMAGES)


def _events(exchange: Exchange, prefix: str, line: Billed) -> Iterator[Event]:
    look = {**_look(exchange.document), "background": "opaque", "output_format": "png", "created_at": exchange.now}
    for index in range(int(exchange.document.get("partial_images") or 0)):
        kind = f"{prefix}.partial_image"
        yield Event({"type": kind, "partial_image_index": index, "b64_json": PNG, **look}, kind)
    kind = f"{prefix}.completed"
    yield Event({"type": kind, "b64_json": PNG, **look, "usage": line.reported}, kind, (line,))


def _look(document: Mapping[str, Any]) -> dict[str, Any]:
    quality, size = document.get("quality"), document.get("size")
    return {
        "quality": quality if quality in OUTPUT_TOKENS else "medium",
        "size": size if size not in (None, "auto") else "1024x1024",
    }
