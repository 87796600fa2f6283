"""Trying again what failed for a reason that may pass: too many requests, a server's error, a broken connection."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled


logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0


def error_chain(error: BaseException | None) -> list[BaseException]:
    """An error and those behind it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_broken(error: BaseException) -> bool:
    """Whether there was no answer. The Hub's client has httpx or httpx2 beneath, depending on its version."""
    is_transport = any(base.__name__ == "TransportError" for base in type(error).__mro__)
    return is_transport or isinstance(error, (ConnectionError, TimeoutError))


def failure_behind(error: BaseException) -> Any:
    """The answer, or the broken connection, behind an error; the error itself if it is neither."""
    chain = error_chain(error)
    return next((one for one in chain if getattr(one, "response", None) is not None or _is_broken(one)), error)


def status_of(error: BaseException) -> int | None:
    """The answer's status, if there was one."""
    return getattr(getattr(failure_behind(error), "response", None), "status_code", None)


def may_pass(error: BaseException) -> bool:
    """Whether a second try may succeed."""
    failure = failure_behind(error)
    if isinstance(failure, OfflineModeIsEnabled):
        return False
    status = status_of(error)
    return _is_broken(failure) if status is None else status in RETRIED_STATUS


def seconds_to_wait(error: BaseException, number: int) -> float:
    """Before the next try: what the server asks for, or 1, 2, 4, ..."""
    headers = getattr(getattr(failure_behind(error), "response", None), "headers", None) or {}
    asked = str(headers.get("retry-after", ""))
    return min(float(asked) if asked.isdigit() else 2.0 ** (number - 1), LONGEST_WAIT)


def in_short(error: BaseException) -> str:
    """One line."""
    failure = failure_behind(error)
    status = status_of(error)
    if status is not None:
        said = (getattr(failure, "server_message", None) or "").strip().partition("\n")[0]
        request_id = getattr(failure, "request_id", None)
        answer = f"{status} {failure.response.reason_phrase}"
        return answer + (f": {said}" if said else "") + (f", request {request_id}" if request_id else "")
    lines = str(failure).splitlines()
    return f"{type(failure).__name__}: {lines[0]}" if lines else type(failure).__name__


def attempt(
    what: str,
    function: Callable[[], T],
    attempts: int,
    is_worth_it: Callable[[Exception], bool] = may_pass,
    redact: Callable[[str], str] = str,
) -> T:
    """
    Call a function, and again while what it raises is worth it.

    Args:
        what (`str`): For the warnings.
        attempts (`int`): How often at most.
        is_worth_it (*optional*): By default [`may_pass`].
        redact (*optional*): Applied to what is logged of the error.
    """
    for number in range(1, attempts + 1):
        try:
            return function()
        except Exception as error:
            if number == attempts or not is_worth_it(error):
                raise
            wait = seconds_to_wait(error, number)
            reason = redact(in_short(error))
        logger.warning("%s failed (%s); try %d of %d in %.0f s.", what, reason, number + 1, attempts, wait)
        time.sleep(wait)
    raise AssertionError
