"""Audio: transcriptions in every format, translations, speech.

A second of audio is 32,000 bytes of the file. `whisper-1` is billed by the second, other transcription models
by the token: ten for a second of audio, and the text. Formats that are no JSON tell nothing. Speech is billed
by the token (ten for every word) and tells only in its event stream, `tts-1` by the character.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final

from token_meter.testing.provider.account import Billed
from token_meter.testing.provider.answer import Answer, tokens
from token_meter.testing.provider.exchange import Exchange
from token_meter.testing.provider.failures import failure
from token_meter.testing.provider.openai.chat import DONE, SERVER_ERROR
from token_meter.testing.provider.openai.usage import (
    SPEECH,
    TRANSCRIPTION,
    duration_block,
    speech_block,
    transcription_block,
)
from token_meter.testing.provider.reply import Chunk, Event, Reply
from token_meter.usage import Usage

API: Final = "openai.audio"
BYTES_PER_SECOND: Final = 32_000
TOKENS_PER_SECOND: Final = 10
SPEECH_TOKENS_PER_WORD: Final = 10
_TEXT_FORMATS: Final = ("text", "srt", "vtt")
_SOUND: Final = b"\xff\xfb\x90\xc4" + b"\x00" * 412
"""A silent MPEG frame."""


def transcribe(exchange: Exchange, names: Mapping[str, str]) -> Reply:
    """POST /audio/transcriptions and /audio/translations."""
    by_second = exchange.model.startswith("whisper")
    form = str(exchange.document.get("response_format") or "json")
    if form == "verbose_json" and not by_second:
        return failure(
            exchange.request, 400, f"response_format 'verbose_json' is not compatible with {exchange.model!r}"
        )
    answer = exchange.answer()
    seconds = _seconds(exchange)
    told = form not in _TEXT_FORMATS and names["verb"] == "transcriptions"
    line = _bill(exchange, answer, seconds, by_second=by_second, told=told)
    if exchange.request.streamed and not by_second:
        return exchange.stream(_events(answer, line), line, errors=[Event(SERVER_ERROR, "error")])
    if form in _TEXT_FORMATS:
        return exchange.body(_subtitles(form, answer.text, seconds).encode(), "text/plain; charset=utf-8", line)
    body: dict[str, Any] = {"text": answer.text}
    if form in ("verbose_json", "diarized_json"):
        body |= {"task": "transcribe", "language": "english", "duration": float(seconds)}
        body["segments"] = [_segment(answer.text, seconds, diarized=form == "diarized_json")]
        body["words"] = [{"word": "Every", "start": 0.0, "end": 0.4}]
    return exchange.json({**body, "usage": line.reported} if told else body, line)


def speech(exchange: Exchange, _: Mapping[str, str]) -> Reply:
    """POST /audio/speech: sound, or events that carry sound."""
    text = str(exchange.document.get("input") or "")
    in_events = exchange.document.get("stream_format") == "sse"
    if exchange.model.startswith("tts-"):
        line = exchange.bill(API, Usage(characters=len(text)), block=None, types=frozenset({"characters"}))
    else:
        usage = Usage(input=tokens(text), output_audio=SPEECH_TOKENS_PER_WORD * len(text.split()))
        line = exchange.bill(API, usage, block=speech_block if in_events else None, types=SPEECH)
    if in_events:
        return exchange.stream(_sounds(exchange, line), line, errors=[Event(SERVER_ERROR, "error")])
    frames = max(4, exchange.faults.size // len(_SOUND) + 1)
    chunks = (Chunk(_SOUND) for _ in range(frames))
    return Reply(200, {"content-type": "audio/mpeg"}, chunks, streamed=True, billed=(line,))


def _seconds(exchange: Exchange) -> int:
    """Rounded up, at least one."""
    size = sum(len(upload.data) for upload in exchange.request.uploads)
    return max(1, -(-size // BYTES_PER_SECOND))


def _bill(exchange: Exchange, answer: Answer, seconds: int, *, by_second: bool, told: bool) -> Billed:
    if by_second:
        usage, block, types = Usage(audio_ms=1000 * seconds), duration_block, frozenset({"audio_ms"})
    else:
        prompt = tokens(str(exchange.document.get("prompt") or ""))
        usage = Usage(input=prompt, input_audio=TOKENS_PER_SECOND * seconds, output=answer.tokens)
        block, types = transcription_block, TRANSCRIPTION
    return exchange.bill(API, usage, block=block if told else None, types=types)


def _events(answer: Answer, line: Billed) -> Iterator[Event]:
    for delta in answer.deltas:
        yield Event({"type": "transcript.text.delta", "delta": delta})
    yield Event({"type": "transcript.text.done", "text": answer.text, "usage": line.reported}, tells=(line,))
    yield DONE


def _sounds(exchange: Exchange, line: Billed) -> Iterator[Event]:
    sound = base64.b64encode(_SOUND).decode()
    for _ in range(exchange.faults.events):
        yield Event({"type": "speech.audio.delta", "audio": sound})
    yield Event({"type": "speech.audio.done", "usage": line.reported}, tells=(line,))


def _subtitles(form: str, text: str, seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    if form == "srt":
        return f"1\n00:00:00,000 --> 00:{minutes:02}:{rest:02},000\n{text}\n\n"
    if form == "vtt":
        return f"WEBVTT\n\n00:00:00.000 --> 00:{minutes:02}:{rest:02}.000\n{text}\n\n"
    return text + "\n"


def _segment(text: str, seconds: int, *, diarized: bool) -> dict[str, Any]:
    base = {"start": 0.0, "end": float(seconds), "text": text}
    if diarized:
        return {"id": "seg_0", "type": "transcript.text.segment", "speaker": "A", **base}
    quality = {"temperature": 0.0, "avg_logprob": -0.2, "compression_ratio": 1.1, "no_speech_prob": 0.01}
    return {"id": 0, "seek": 0, "tokens": [50364], **base, **quality}
