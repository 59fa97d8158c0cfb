"""Reasons why a row cannot be used, and the fault that carries one."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a row could not be used."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    THROTTLED = "throttled"
    READ_ERROR = "read_error"
    CHANGED = "changed"
    EMPTY = "empty"
    UNSUPPORTED = "unsupported"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    NON_FINITE = "non_finite"
    ZERO_VECTOR = "zero_vector"
    WRONG_LENGTH = "wrong_length"


class ImageFault(Exception):  # noqa: N818 (a row's fault is data, not a program error)
    """One image cannot be used; ``reason`` is the typed cause and ``detail`` the words for a person."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
