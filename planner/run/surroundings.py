"""Which variables the engine gets to see, and what of them may be shown. Pure: the environment is an argument."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

HIDDEN = "<redacted>"
SHORTEST_SECRET = 6  # letters: shorter values would be found by chance in a log

_ONES = (
    "PATH HOME USER LOGNAME SHELL TERM LANG LANGUAGE TZ TMPDIR TEMP TMP VIRTUAL_ENV PYTHONPATH PYTHONWARNINGS "
    "PYTHONHASHSEED LD_LIBRARY_PATH LD_PRELOAD LIBRARY_PATH CPATH CC CXX MAX_JOBS NNODES NODE_RANK MASTER_ADDR "
    "MASTER_PORT NPROC_PER_NODE RDZV_ID MIN_NNODES MAX_NNODES MAX_RESTARTS FORCE_TORCHRUN OPTIM_TORCH RECORD_VRAM "
    "ALLOW_EXTRA_ARGS DISABLE_VERSION_CHECK FORCE_CHECK_IMPORTS USE_MODELSCOPE_HUB USE_OPENMIND_HUB "
    "HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy SSL_CERT_FILE SSL_CERT_DIR "
    "REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HF_TOKEN"
)
_FAMILY_WORDS = (
    "LC_ CONDA_ CUDA_ NVIDIA_ NCCL_ GLOO_ UCX_ FI_ TORCH PYTORCH_ HF_ HUGGINGFACE_ HUGGING_FACE_ TRANSFORMERS_ "
    "DATASETS_ TOKENIZERS_ ACCELERATE_ DS_ DEEPSPEED_ BNB_ BITSANDBYTES_ TRITON_ FLASH_ LIGER_ UNSLOTH_ OMP_ MKL_ "
    "OPENBLAS_ NUMEXPR_ KMP_ GOMP_ XDG_ WANDB_ SWANLAB_ MLFLOW_ COMET_ TENSORBOARD_ TRACKIO_ ASCEND_ HCCL_ HIP_ ROCR_ "
    "HSA_ SLURM_ MODELSCOPE_ LLAMAFACTORY_ TRL_"
)
_NAMES = frozenset(_ONES.split())
_FAMILIES = tuple(_FAMILY_WORDS.split())
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZERS_PARALLELISM)|SECRET|PASSW|CREDENTIAL|(^|_)(API_?)?KEY(_|$)|APIKEY|(^|_)(PAT|AUTH)(_|$)"
)
# Kinds of tokens: the bytes that every one of them has (looked for first, because floods are searched too), its form.
_SECRET_SHAPES = (
    (b"hf_", re.compile(rb"\bhf_[A-Za-z0-9]{16,}")),
    (b"k-", re.compile(rb"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}")),
    (b"gh", re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{20,}")),
    (b"AKIA", re.compile(rb"\bAKIA[0-9A-Z]{16}\b")),
    (b"://", re.compile(rb"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")),
)


def allowed(environment: Mapping[str, str], extra: Collection[str] = ()) -> dict[str, str]:
    """The variables that a trainer has a use for, and those that were asked for by name."""
    return {
        name: value
        for name, value in environment.items()
        if name in _NAMES or name in extra or name.startswith(_FAMILIES)
    }


def is_secret(name: str) -> bool:
    """True for a variable, or a key of a configuration, whose value nobody else should read."""
    return bool(_SECRET_NAME.search(name.upper().replace("-", "_")))


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Values that must not show up in logs, the longest first."""
    values = {value for name, value in environment.items() if is_secret(name) and len(value) >= SHORTEST_SECRET}
    return tuple(sorted(values, key=len, reverse=True))


def shown_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The same for a log or an export, by name; secret values are hidden."""
    return {
        name: HIDDEN if is_secret(name) else redact(value, secrets_of(environment))
        for name, value in sorted(environment.items())
    }


def shown_command(words: Sequence[str], secrets: Sequence[str] = ()) -> tuple[str, ...]:
    """A command for a log: values of secret keys (``api_key=...``, ``--token ...``) and known secrets are hidden."""
    shown, hide_next = [], False
    for word in words:
        name, sign, _ = word.partition("=")
        if hide_next or (sign and is_secret(name.lstrip("-"))):
            shown.append(f"{name}={HIDDEN}" if sign and not hide_next else HIDDEN)
        else:
            shown.append(redact(word, secrets))
        hide_next = not sign and word.startswith("--") and is_secret(word.lstrip("-"))
    return tuple(shown)


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """A text without the given secrets and without anything that has the shape of a known kind of token."""
    return redact_bytes(text.encode("utf-8", "surrogatepass"), [secret.encode() for secret in secrets]).decode(
        "utf-8", "surrogatepass"
    )


def redact_bytes(data: bytes, secrets: Sequence[bytes] = ()) -> bytes:
    """The same for what a process printed."""
    hidden = HIDDEN.encode()
    for secret in secrets:
        data = data.replace(secret, hidden)
    for part, shape in _SECRET_SHAPES:
        data = shape.sub(hidden, data) if part in data else data
    return data
