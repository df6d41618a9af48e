"""A request as the endpoints see it, and the part of it that is kept in the log."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from token_meter.testing.provider.faults import Faults

_OPTIONS: Final = re.compile(r"/+~([^/]*)(/.*)?$", re.DOTALL)
_MODEL_IN_PATH: Final = re.compile(r"/(?:models|deployments|engines)/([^/:]+)")
_LOGGED_HEADERS: Final = re.compile(
    r"accept|accept-encoding|anthropic-beta|anthropic-version|content-type|content-length|host|idempotency-key"
    r"|openai-beta|traceparent|user-agent|x-goog-api-client|x-stainless-[\w-]+|x-token-meter-[\w-]+"
)

_SECRET: Final = re.compile(r"key|token|secret|password|signature", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a multipart form, and the name of its field."""

    field: str
    filename: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `document` is its JSON object or the fields of its form; `path` is without the options."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)
    uploads: tuple[Upload, ...] = ()
    faults: Faults = field(default_factory=Faults)

    @property
    def model(self) -> str | None:
        """The model asked for: in the body, or in the path where the body names none."""
        if isinstance(named := self.document.get("model"), str):
            return named.removeprefix("models/")
        match = _MODEL_IN_PATH.search(self.path)
        return match and match.group(1)

    @property
    def streamed(self) -> bool:
        """Whether the client asked for a stream."""
        return self.document.get("stream") in (True, "true") or self.query.get("alt") == "sse"


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """What the log keeps of a request: nothing of its prompt and no key.

    `headers` are only those on a list of harmless ones, `query` is without anything that sounds like a secret.
    `stream_options` are as received, None if absent.
    """

    method: str
    path: str
    query: Mapping[str, str]
    model: str | None
    stream: bool
    stream_options: Any
    headers: Mapping[str, str]
    options: str


def seen(request: Request) -> SeenRequest:
    """The log entry for a request."""
    return SeenRequest(
        method=request.method,
        path=request.path,
        query={name: value for name, value in request.query.items() if not _SECRET.search(name)},
        model=request.model,
        stream=request.streamed,
        stream_options=request.document.get("stream_options"),
        headers={name: value for name, value in request.headers.items() if _LOGGED_HEADERS.fullmatch(name)},
        options=request.faults.text,
    )


def read_request(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Request:
    """Read a request. Raises ValueError for options that do not exist or a body that is no JSON object."""
    url = urlsplit(target)
    options, path = "", url.path
    if match := _OPTIONS.match(path):
        options, path = unquote(match.group(1)), match.group(2) or "/"
    headers = {name.lower(): value for name, value in headers.items()}
    content_type = headers.get("content-type", "")
    multipart = content_type.startswith("multipart/")
    document, uploads = _read_form(content_type, body) if multipart else (_read_json(content_type, body), ())
    return Request(
        method=method,
        path=unquote(re.sub("//+", "/", path)),
        query=dict(parse_qsl(url.query, keep_blank_values=True)),
        headers=headers,
        document=document,
        uploads=uploads,
        faults=Faults.parse(options),
    )


def _read_json(content_type: str, body: bytes) -> dict[str, Any]:
    if not body or "json" not in content_type:
        return {}
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("the body must be a JSON object")
    return document


def _read_form(content_type: str, body: bytes) -> tuple[dict[str, Any], tuple[Upload, ...]]:
    form = message_from_bytes(b"content-type: " + content_type.encode() + b"\r\n\r\n" + body)
    fields: dict[str, Any] = {}
    uploads: list[Upload] = []
    for part in form.walk():
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            continue
        payload = part.get_payload(decode=True)
        data = payload if isinstance(payload, bytes) else b""
        if filename := part.get_filename():
            uploads.append(Upload(name, filename, data))
        else:
            fields[name] = data.decode(errors="replace")
    return fields, tuple(uploads)
