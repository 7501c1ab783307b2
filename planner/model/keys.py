"""Reading a config.json: typed values, a key's spellings, transformers' defaults, a sentence for what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from planner.errors import InputError
from planner.model.defaults import DEFAULTS

# One idea under several names (GPT-2, MPT, OPT, BLOOM, Falcon, ChatGLM); source: the families' own config classes.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "inner_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length", "max_sequence_length", "model_max_length"),
    "vocab_size": ("padded_vocab_size",),
    "num_local_experts": ("num_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("moe_k", "moe_topk"),
}
# Without these a top-level config says nothing about its model, and a default would be a guess.
ESSENTIAL = frozenset({"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})


class Keys:
    """One config mapping with its model type; ``place`` opens every error sentence.

    ``nested`` marks a ``text_config`` or ``vision_config``: transformers leaves every default out of those, so
    defaults count for essential keys too.
    """

    def __init__(self, config: Mapping[str, Any], model_type: str, *, place: str, nested: bool = False) -> None:
        self.config = config
        self.model_type = model_type
        self.place = place
        self.nested = nested
        self._defaults = DEFAULTS.get(model_type, {})

    def raw(self, name: str) -> Any:
        """The value under the key or one of its other spellings, else transformers' default, else None."""
        names = (name, *SPELLINGS.get(name, ()))
        for spelling in names:
            if self.config.get(spelling) is not None:
                return self.config[spelling]
        if name in ESSENTIAL and not self.nested:
            return None
        return next((self._defaults[each] for each in names if each in self._defaults), None)

    def whole(self, name: str, default: int | None = None) -> int:
        """A positive whole number. Raises InputError where it is missing or not one."""
        value = self.raw(name)
        if value is None:
            if default is None:
                raise InputError(f"{self.place}: key {name!r} is missing{self._offer(name)}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise InputError(f"{self.place}: {name} is {_short(value)}; it must be a positive whole number")
        return value

    def maybe(self, name: str) -> int | None:
        """A positive whole number, or None where the key is absent, null or 0."""
        return None if self.raw(name) in (None, 0) else self.whole(name)

    def number(self, name: str, default: float) -> float:
        """A number of any kind."""
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{self.place}: {name} is {_short(value)}; it must be a number")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InputError(f"{self.place}: {name} is {_short(value)}; it must be true or false")
        return value

    def text(self, *names: str, default: str) -> str:
        """A word."""
        value = next((self.raw(name) for name in names if self.raw(name) is not None), default)
        if not isinstance(value, str):
            raise InputError(f"{self.place}: {names[0]} is {_short(value)}; it must be a word")
        return value

    def items(self, name: str) -> list[Any] | None:
        """A list, or None where the key is absent."""
        value = self.raw(name)
        if value is not None and not isinstance(value, list | tuple):
            raise InputError(f"{self.place}: {name} is {_short(value)}; it must be a list")
        return None if value is None else list(value)

    def section(self, name: str) -> Mapping[str, Any]:
        """A nested mapping, empty where the key is absent."""
        value = self.config.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise InputError(f"{self.place}: {name} is {_short(value)}; it must be an object")
        return value or {}

    def is_null(self, name: str) -> bool:
        """True where the config says null in so many words, which switches a default off."""
        return name in self.config and self.config[name] is None

    def _offer(self, name: str) -> str:
        others = [key for key in self.config if isinstance(key, str) and key != name]
        close = difflib.get_close_matches(name, others, n=1, cutoff=0.85)
        return f"; did you mean {name} where it says {close[0]}?" if close else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
