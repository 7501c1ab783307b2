"""How many tokens a text has: by the model's own tokenizer where it lies on this machine, else by a stated rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planner.model import fetch
from planner.model.spec import ModelSpec

# A token is 3 to 4 letters of English and 1.5 to 1.8 Chinese characters; the smaller figure of each counts more tokens.
# Source: Qwen documentation, "Key Concepts", tokens.
LETTERS_PER_TOKEN = 3.0
WIDE_LETTERS_PER_TOKEN = 1.5
_WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\u3040-\u30ff]")


@dataclass(frozen=True)
class Counter:
    """``count`` of tokens in a text, and whose count it is. ``exact``: the tokenizer that training will use."""

    name: str
    exact: bool
    count: Callable[[str], int]


def counter_for(spec: ModelSpec) -> Counter:
    """The tokenizer beside the model's config or in the Hugging Face cache, else the rule of letters."""
    path = _tokenizer_file(spec)
    if path is not None:
        try:
            return _own(path)
        except ImportError:
            return _by_letters("the tokenizer is there, and the package tokenizers is not installed")
        except Exception:  # the library raises bare exceptions for files it cannot read
            return _by_letters(f"{path} cannot be read")
    return _by_letters("the model's tokenizer is not on this machine")


def _tokenizer_file(spec: ModelSpec) -> Path | None:
    cached = fetch.hub_cache_path(spec.id)
    folders = [Path(spec.local_path)] if spec.local_path else []
    folders += [cached.parent] if cached is not None else []
    return next((file for folder in folders if (file := folder / "tokenizer.json").is_file()), None)


def _own(path: Path) -> Counter:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Counter(f"{path}", True, lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids))


def _by_letters(why: str) -> Counter:
    return Counter(
        f"{LETTERS_PER_TOKEN:g} letters a token ({WIDE_LETTERS_PER_TOKEN:g} of Chinese), because {why}", False, letters
    )


def letters(text: str) -> int:
    """Tokens by the rule of letters, rounded up."""
    wide = len(_WIDE.findall(text))
    return -int(-(wide / WIDE_LETTERS_PER_TOKEN + (len(text) - wide) / LETTERS_PER_TOKEN) // 1)
