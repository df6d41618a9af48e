"""The error bodies of the vendors, for `fail=` and for paths that nobody serves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from token_meter.testing.provider.reply import Reply, encode
from token_meter.testing.provider.request import Request

_ANTHROPIC: Final[Mapping[int, str]] = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip
_GOOGLE: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_OPENAI: Final[Mapping[int, tuple[str, str | None]]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


def vendor(request: Request) -> str:
    """Whose wire format a request speaks: openai, anthropic or google."""
    if re.search(r"/messages(/|$)", request.path) or "anthropic-version" in request.headers:
        return "anthropic"
    google = re.search(r":\w+$|/interactions(/|$)|^/v1(beta\d?|alpha)/", request.path)
    if google or "x-goog-api-client" in request.headers:
        return "google"
    return "openai"


def failure(request: Request, status: int, message: str) -> Reply:
    """An error as the vendor words it."""
    document = _DOCUMENTS[vendor(request)](status, message)
    retry_after = request.faults.retry_after
    headers = {
        "content-type": "application/json",
        "retry-after": f"{retry_after:g}",
        "retry-after-ms": str(max(1, round(1000 * retry_after))),
    }
    return Reply(status, headers, [encode(document)], document=document)


def _openai(status: int, message: str) -> dict[str, Any]:
    kind, code = _OPENAI.get(status, ("server_error", None))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _anthropic(status: int, message: str) -> dict[str, Any]:
    error = {"type": _ANTHROPIC.get(status, "api_error"), "message": message}
    return {"type": "error", "error": error, "request_id": None}


def _google(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": _GOOGLE.get(status, "INTERNAL")}}


_DOCUMENTS: Final = {"openai": _openai, "anthropic": _anthropic, "google": _google}
