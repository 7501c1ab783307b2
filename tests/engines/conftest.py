"""The engine's Python as fixtures, and a tiny model that it made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine_python import Engine, engine_python

SCRIPTS = Path(__file__).parent / "scripts"


class ScriptEngine(Engine):
    """Knows the scripts of this folder."""

    def script(self, name: str, *words: str, cwd: Path, **extra: str) -> str:
        done = self.run(str(self.python), str(SCRIPTS / name), *words, cwd=cwd, **extra)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="session")
def lf_python() -> Path:
    return engine_python()


@pytest.fixture(scope="session")
def engine(lf_python: Path) -> ScriptEngine:
    return ScriptEngine(lf_python)


@pytest.fixture(scope="session")
def newest() -> ScriptEngine:
    """The newest transformers stack, with TRL."""
    return ScriptEngine(engine_python("VRAMPLAN_HF_PYTHON"))


@pytest.fixture(scope="session")
def newest_tiny_model(newest: ScriptEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tiny model, made there."""
    folder = tmp_path_factory.mktemp("tiny-newest") / "model"
    newest.script("make_tiny_model.py", str(folder), cwd=folder.parent)
    return folder


@pytest.fixture(scope="session")
def tiny_model(engine: ScriptEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 140k parameters with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    engine.script("make_tiny_model.py", str(folder), cwd=folder.parent)
    return folder
