"""What all suites share: the tests never reach a hub, a GPU or the user's own environment."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import settings

# The same examples every time, and no deadline: a loaded machine is not a wrong answer.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

_OWN = ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "VRAMPLAN_DEBUG", "VRAMPLAN_HISTORY", "CUDA_VISIBLE_DEVICES", "HF_TOKEN")


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No hub, no colours, no width, no device selection and no history of runs that a desk happens to have."""
    for name in _OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VRAMPLAN_HOME", str(tmp_path_factory.getbasetemp() / f"no-history-{uuid4().hex}"))
