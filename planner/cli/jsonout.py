"""Records -> stable JSON: the one document that ``--json`` prints."""

from __future__ import annotations

import json
from typing import Any


def document(value: Any) -> str:
    """One readable JSON document; names keep their letters whatever their alphabet."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def error_json(sentence: str, hint: str | None) -> str:
    """The document of a run that failed: the sentence of stderr under ``error``."""
    return document({"error": sentence} | ({"hint": hint} if hint else {}))
