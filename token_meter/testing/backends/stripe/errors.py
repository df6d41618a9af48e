"""What Stripe answers when it does not do what it was asked: one exception, and its usual bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from token_meter.testing.backends.base import Response

INVALID: Final = "invalid_request_error"
NOT_WORTH_RETRYING: Final = {"Stripe-Should-Retry": "false"}


class ApiError(Exception):
    """A refusal on its way to the client."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers or {}

    def response(self) -> Response:
        """The error as Stripe words it; fields that do not apply are absent, as they are there."""
        error: dict[str, Any] = {"message": str(self), "type": self.kind}
        error |= {name: value for name, value in (("code", self.code), ("param", self.param)) if value is not None}
        return Response.json({"error": error}, status=self.status, headers=self.headers)


def unauthorized(message: str, *, code: str | None = None) -> ApiError:
    """The key or token is not one that is let in."""
    return ApiError(message, status=401, code=code)


def missing(what: str, name: str, *, param: str | None = None, status: int = 400) -> ApiError:
    """An object that is referred to and does not exist."""
    return ApiError(f"No such {what}: '{name}'", status=status, code="resource_missing", param=param)


def session_expired() -> ApiError:
    """The token of the stream is older than 15 minutes."""
    return ApiError(
        "The temporary session token has expired.",
        status=401,
        kind="temporary_session_expired",
        code="billing_meter_event_session_expired",
    )


def rate_limited(version: str) -> ApiError:
    """More requests per second than are allowed. No `Retry-After`: Stripe leaves the pace to the client."""
    message = "Too many requests hit the API too quickly. Back off exponentially, with jitter."
    return ApiError(message, status=429, kind="rate_limit" if version == "v2" else INVALID, code="rate_limit")


def locked(version: str) -> ApiError:
    """A second call for the same customer and meter while the first is being worked on.

    Assumption: v1 documents a 429 without naming its code; `lock_timeout` is the code of Stripe's other 429 of the
    kind. What v2 documents is `conflict`.
    """
    message = (
        "This object cannot be accessed right now because another API request or Stripe process is currently "
        "accessing it. Make your requests serially or at a lower rate."
    )
    return ApiError(message, status=429, kind="rate_limit" if version == "v2" else INVALID, code="lock_timeout")


def conflict() -> ApiError:
    """The same on v2, as its API reference has it: 409."""
    return ApiError(
        "Cannot create multiple usage events for the same customer, meter concurrently.",
        status=409,
        code="too_many_concurrent_requests",
    )


def duplicate(version: str, identifier: str) -> ApiError:
    """The identifier was used within 24 hours. v1 sends no code (seen by others), v2 documents one."""
    if version == "v2":
        return ApiError(
            "A meter event with a duplicate identifier has already been submitted.",
            code="duplicate_meter_event",
            headers=NOT_WORTH_RETRYING,
        )
    return ApiError(f"An event already exists with identifier {identifier}.", headers=NOT_WORTH_RETRYING)


def unavailable() -> Response:
    """Nothing works at the moment."""
    message = "Stripe is temporarily unavailable. Try again later."
    return ApiError(message, status=503, kind="api_error").response()


def failed() -> Response:
    """Something broke at Stripe."""
    message = "An unknown error occurred. The request may or may not have been carried out."
    return ApiError(message, status=500, kind="api_error").response()
