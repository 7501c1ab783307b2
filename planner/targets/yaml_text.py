"""YAML in and out: text that PyYAML, OmegaConf and accelerate read to the same values.

Writing needs mappings of scalars, lists and mappings only, so it is done here (a JSON string is a YAML string, in
every version of YAML); PyYAML is loaded when something is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from planner.errors import InputError

# Text that no reader takes for anything else: it starts with a letter, and is none of YAML 1.1's words.
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def dump_yaml(values: Mapping[str, Any], *, indent: str = "") -> str:
    """Block-style YAML in the given order; floats carry a point (``1.0e-05``), so no reader sees a string."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{_scalar(key)}:\n{dump_yaml(value, indent=indent + '  ')}")
        else:
            lines.append(f"{indent}{_scalar(key)}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_scalar(each) for each in value)}]"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str) and not (_PLAIN.fullmatch(value) and value.lower() not in _WORDS):
        return _quoted(value)
    return str(value)


def _number(value: float) -> str:
    text = repr(value)
    if "e" not in text:
        return text
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"


def _quoted(text: str) -> str:
    """A JSON string whose letters stay readable; what YAML cannot hold as it is stays escaped."""
    return "".join(
        letter if letter.isprintable() else f"\\U{ord(letter):08x}" if ord(letter) > 0x7E else letter
        for letter in json.dumps(text, ensure_ascii=False)
    )


def dump_sections(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """One YAML document whose keys stand under ``### title`` comments."""
    parts = [f"### {title}\n{dump_yaml(values)}" for title, values in sections.items() if values]
    return "\n".join(parts)


def load_yaml(text: str, *, place: str) -> dict[str, Any]:
    """A YAML mapping; numbers such as ``1e-4`` are numbers, as OmegaConf reads them.

    Raises InputError naming ``place`` and the line where the text is no YAML, or no mapping.
    """
    import yaml

    try:
        values = yaml.load(text, Loader=_loader())  # noqa: S506 a SafeLoader
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise InputError(f"{place}: is not YAML{where}") from None
    if not isinstance(values, dict):
        raise InputError(f"{place}: is not a mapping of keys to values")
    return values


@lru_cache(maxsize=1)
def _loader() -> Any:
    """YAML 1.1 with the floats of OmegaConf: an exponent needs neither point nor sign."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    exponent = re.compile(r"^[-+]?\d[\d_]*\.?[\d_]*[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    return Loader
