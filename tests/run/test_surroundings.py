"""What the engine sees of the environment, and what nobody else may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.run.surroundings import (
    HIDDEN,
    allowed,
    is_secret,
    redact,
    redact_bytes,
    secrets_of,
    shown_command,
    shown_environment,
)


def test_a_trainer_gets_what_it_uses_and_nothing_else() -> None:
    there = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "WANDB_API_KEY": "k" * 12, "AWS_SECRET_ACCESS_KEY": "s" * 12,
             "SSH_AUTH_SOCK": "/s", "NCCL_DEBUG": "INFO", "LD_LIBRARY_PATH": "/lib", "MY_PATHS": "x"}  # fmt: skip
    assert set(allowed(there)) == {"PATH", "CUDA_VISIBLE_DEVICES", "WANDB_API_KEY", "NCCL_DEBUG", "LD_LIBRARY_PATH"}
    assert "MY_PATHS" in allowed(there, extra=("MY_PATHS",))


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "api_key", "SWANLAB_PASSWORD", "hub_token",
                                  "MLFLOW_TRACKING_PASSWORD", "GITHUB_PAT",
                                  "AWS_SECRET_ACCESS_KEY", "MY_CREDENTIALS"])  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["PATH", "TOKENIZERS_PARALLELISM", "MONKEY", "KEYBOARD", "NCCL_DEBUG", "PATTERN"])
def test_names_of_others(name: str) -> None:
    assert not is_secret(name)


@given(st.text("abcdefghijklmnop0123456789", min_size=6, max_size=40), st.text(max_size=60), st.text(max_size=60))
def test_a_secret_never_passes(secret: str, before: str, after: str) -> None:
    shown = shown_environment({"HF_TOKEN": secret, "OTHER": f"{before} {secret} {after}"})
    assert shown["HF_TOKEN"] == HIDDEN
    assert secret not in shown["OTHER"].replace(HIDDEN, "")
    text = f"{before}{secret}{after}".encode()
    assert secret.encode() not in redact_bytes(text, [secret.encode()]).replace(HIDDEN.encode(), b"")


def test_tokens_are_known_by_their_shape() -> None:
    text = f"login {'hf_' + 'a1B2' * 6} and {'sk-' + 'x' * 20} at https://me:pw123456@host/x"
    assert redact(text) == f"login {HIDDEN} and {HIDDEN} at https://{HIDDEN}@host/x"
    assert redact("loss 1.25 at https://host:8080/x, hf_hub 1.0") == "loss 1.25 at https://host:8080/x, hf_hub 1.0"


def test_a_command_is_shown_without_the_values_of_secret_keys() -> None:
    words = ("run", "hub_token=abcdef", "max_steps=3", "--api-key", "xyz123", "--lr", "1e-4")
    assert shown_command(words) == ("run", f"hub_token={HIDDEN}", "max_steps=3", "--api-key", HIDDEN, "--lr", "1e-4")


def test_short_values_are_not_looked_for_in_logs() -> None:
    assert secrets_of({"A_TOKEN": "abc", "B_TOKEN": "abcdefgh"}) == ("abcdefgh",)
