"""Reasons why an image or vector cannot be used, and the exception that carries one to ``failures/``."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a row cannot be used: the column ``reason`` of ``failures/``; docs/storage.md explains each."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
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
    DUPLICATE_ID = "duplicate_id"


class RowFault(Exception):  # noqa: N818 (a row's fault is data, not a program error)
    """One image cannot be used. Caught per row and recorded, so it never ends a run.

    Attributes:
        reason: cause, from a closed list.
        detail: explanation for a person.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def record(self) -> dict[str, str]:
        """Return the columns ``reason`` and ``detail`` of ``failures/``."""
        return {"reason": self.reason.value, "detail": self.detail}

    @classmethod
    def parse(cls, text: str) -> "RowFault":
        """Return the fault that the manifest's column ``fault`` describes: "REASON: detail"."""
        reason, _, detail = text.partition(": ")
        return cls(Reason(reason), detail)
