"""Where the facts and the templates lie: inside the installed package, else beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def _resource_dir(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def rules_dir() -> Path:
    """The folder of TOML facts."""
    return _resource_dir("rules")


def templates_dir() -> Path:
    """The folder of Jinja2 templates."""
    return _resource_dir("templates")
