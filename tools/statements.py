"""What every reading of a measured row shares: its types and the error for what the contract cannot say."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
Setup = dict[str, Any]


class NotStatableError(Exception):
    """The contract's fields cannot say what this run did; the message says why."""
