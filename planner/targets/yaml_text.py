"""YAML in and out: text that PyYAML, OmegaConf and accelerate read to the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from planner.errors import InputError

# What a YAML 1.2 reader such as OmegaConf takes for a number though YAML 1.1 does not: 1e-4, 1e5.
_NUMBER_ELSEWHERE = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")


class _Dumper(yaml.SafeDumper):
    """Quotes strings that another reader would take for numbers; never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _NUMBER_ELSEWHERE.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Block-style YAML in the given order; floats carry a point (``1.0e-05``), so no reader sees a string."""
    return yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1000
    )


def dump_sections(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """One YAML document whose keys stand under ``### title`` comments."""
    parts = [f"### {title}\n{dump_yaml(values)}" for title, values in sections.items() if values]
    return "\n".join(parts)


def load_yaml(text: str, *, place: str) -> dict[str, Any]:
    """A YAML mapping; numbers such as ``1e-4`` are numbers, as OmegaConf reads them.

    Raises InputError naming ``place`` and the line where the text is no YAML, or no mapping.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 a SafeLoader
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise InputError(f"{place}: is not YAML{where}") from None
    if not isinstance(values, dict):
        raise InputError(f"{place}: is not a mapping of keys to values")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of OmegaConf: an exponent needs neither point nor sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*\.?[\d_]*[eE][-+]?\d+$"), list("-+0123456789")
)
