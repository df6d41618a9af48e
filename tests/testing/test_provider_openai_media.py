"""OpenAI's endpoints that are no conversation: embeddings, images, audio, and what is free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from token_meter.testing.provider import LoopbackProvider
from token_meter.usage import Usage

AUDIO = ("speech.wav", b"\x00" * 70_000)


@pytest.fixture
def client(provider: LoopbackProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=provider.openai_url, api_key="sk-secret", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def lenient(provider: LoopbackProvider) -> Iterator[openai.OpenAI]:
    """For bodies that the SDK's own types do not allow, though the real API sends them."""
    with openai.OpenAI(base_url=provider.openai_url, api_key="sk-secret", max_retries=0) as client:
        yield client


def valid(model: Any) -> Any:
    """The model, if what the wire carried fits its type exactly."""
    type(model).model_validate(model.to_dict())
    return model


def read(stream: Any) -> list[Any]:
    return [valid(each) for each in stream]


def block_total(usage: Any) -> int:
    return int(usage.total_tokens)


def test_embeddings_in_both_encodings(provider, client, lenient):
    floats = valid(
        client.embeddings.create(model="text-embedding-3-small", input=[1, 2, 3], encoding_format="float", dimensions=8)
    )
    decoded = lenient.embeddings.create(model="text-embedding-3-small", input=["Hello", "world"], dimensions=8)

    assert decoded.data[1].embedding == pytest.approx(floats.data[0].embedding)
    assert [len(each.data) for each in (floats, decoded)] == [1, 2]
    assert [line.usage for line in provider.billed] == [Usage(input=3), Usage(input=4)]
    assert [block_total(each.usage) for each in (floats, decoded)] == [3, 4]


def test_images(provider, client):
    generate, edit = client.images.generate, client.images.edit
    made = valid(generate(model="gpt-image-1", prompt="A fox", n=2, quality="low"))
    edited = valid(edit(model="gpt-image-1", prompt="A fox", image=[("a.png", b"a"), ("b.png", b"b")]))
    streamed = read(generate(model="gpt-image-1", prompt="A fox", stream=True, partial_images=2))
    streamed_edit = read(edit(model="gpt-image-1", prompt="A fox", image=("a.png", b"a"), stream=True))
    by_the_piece = valid(generate(model="dall-e-3", prompt="A fox", n=1))

    assert [len(made.data), len(edited.data), len(by_the_piece.data)] == [2, 1, 1]
    assert [event.type for event in streamed] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.type for event in streamed_edit] == ["image_edit.completed"]
    assert [line.usage for line in provider.billed] == [
        Usage(input=2, output_image=544),
        Usage(input=2, input_image=516, output_image=1056),
        Usage(input=2, output_image=1056),
        Usage(input=2, input_image=258, output_image=1056),
        Usage(images=1),
    ]
    told = (made, edited, streamed[-1], streamed_edit[-1])
    assert [block_total(each.usage) for each in told] == [line.usage.tokens for line in provider.billed[:4]]
    assert (by_the_piece.usage, provider.billed[-1].told) == (None, False)


@pytest.mark.parametrize(
    ("model", "response_format"),
    [("whisper-1", form) for form in ("json", "verbose_json", "text", "srt", "vtt")]
    + [("gpt-4o-transcribe", form) for form in ("json", "diarized_json", "text")],
)
def test_transcriptions_in_every_format(provider, client, model, response_format):
    result: Any = client.audio.transcriptions.create(model=model, file=AUDIO, response_format=response_format)

    [line] = provider.billed
    by_second = Usage(audio_ms=3000)
    assert line.usage == (by_second if model == "whisper-1" else Usage(input_audio=30, output=19))
    if isinstance(result, str):
        assert ("Every call is counted" in result, line.told, line.reported) == (True, False, None)
    else:
        assert valid(result).text.startswith("Every call")
        assert result.usage.to_dict() == line.reported
        assert line.reported["type"] == ("duration" if model == "whisper-1" else "tokens")


def test_only_whisper_knows_the_verbose_format(provider, client):
    with pytest.raises(openai.BadRequestError, match="not compatible"):
        client.audio.transcriptions.create(model="gpt-4o-transcribe", file=AUDIO, response_format="verbose_json")

    assert provider.billed == []


def test_a_streamed_transcription_and_speech(provider, client):
    events = read(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=AUDIO, stream=True, prompt="Hi"))
    sound = client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="Hello there")
    told = client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="Hello there", stream_format="sse")
    old = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello there")

    assert block_total(events[-1].usage) == provider.billed[0].usage.tokens == 1 + 30 + 19
    assert sound.content.startswith(b"\xff\xfb") and old.content == sound.content
    done = json.loads(told.text.strip().rsplit("data: ", 1)[1])
    assert done["usage"] == {"input_tokens": 3, "output_tokens": 20, "total_tokens": 23}
    assert [(line.usage, line.told) for line in provider.billed[1:]] == [
        (Usage(input=3, output_audio=20), False),
        (Usage(input=3, output_audio=20), True),
        (Usage(characters=11), False),
    ]


def test_free_and_deprecated_endpoints(provider, client):
    moderation = valid(client.moderations.create(input="Hello"))
    models = [valid(model).id for model in client.models.list()]
    form = {"files": {"file": AUDIO}, "data": {"model": "whisper-1"}}
    translation = httpx2.post(f"{provider.openai_url}/audio/translations", **form).json()
    picture = {"files": {"image": ("a.png", b"a")}, "data": {"model": "dall-e-2"}}
    variation = httpx2.post(f"{provider.openai_url}/images/variations", **picture).json()

    assert moderation.results[0].flagged is False
    assert "gpt-4o" in models
    assert set(translation) == {"text"}
    assert variation["data"][0]["url"].startswith("https://")
    assert [line.usage for line in provider.billed] == [Usage(audio_ms=3000), Usage(images=1)]
