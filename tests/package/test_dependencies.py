"""What the core imports is what pyproject.toml declares; the heavy libraries stay out of it."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import name -> the name of its distribution, where they differ.
DISTRIBUTION = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py"}
# Imported inside functions that only run where the library is there, each announced: extras `count` and `trace`.
OPTIONAL = {"torch", "transformers", "accelerate", "peft", "liger_kernel", "triton", "huggingface_hub", "tokenizers"}


def imported_by(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {requirement.split(">")[0].split("=")[0].strip() for requirement in project["dependencies"]}
    used = set().union(*(imported_by(path) for path in (ROOT / "planner").rglob("*.py")))
    foreign = {DISTRIBUTION.get(name, name) for name in used - sys.stdlib_module_names - {"planner"} - OPTIONAL}
    assert foreign == declared


def test_the_version_is_said_once() -> None:
    import planner

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == planner.__version__
