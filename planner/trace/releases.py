"""What differs between releases of transformers that a trace can run in: 4.48 and 5."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from planner.errors import UnsupportedError

if TYPE_CHECKING:
    from planner.trace.job import Job


@lru_cache(maxsize=1)
def installed() -> tuple[int, ...]:
    """Major and minor number of the installed transformers."""
    return tuple(int(part) for part in version("transformers").split(".")[:2])


def runs_own_code(job: Job) -> bool:
    """Whether the installed transformers is the release that the job asks for."""
    return installed() == job.transformers[:2]


def refuse_other_release(job: Job) -> None:
    """Raises UnsupportedError in an older transformers than 5 for any release but its own."""
    if installed() < (5,) and not runs_own_code(job):
        here, asked = (".".join(map(str, number[:2])) for number in (installed(), job.transformers))
        raise UnsupportedError(
            f"transformers {here} is installed here and the setup asks for {asked}, so it is not traced",
            hint=f"--versions transformers={here}, or trace in an environment of transformers 5",
        )


def no_init_weights() -> AbstractContextManager[None]:
    """Leaves new weights as they are."""
    if installed() >= (5,):
        from transformers.initialization import no_init_weights as skip
    else:
        from transformers.modeling_utils import no_init_weights as skip
    made: AbstractContextManager[None] = skip()
    return made


def dtype_word() -> str:
    """The argument of ``from_config`` that names the weights' dtype."""
    return "dtype" if installed() >= (4, 56) else "torch_dtype"


def allow_flash_attention(kernel: Callable[..., Any]) -> None:
    """Lets models be built for flash attention without its package; ``kernel`` stands in for its functions."""
    import transformers.integrations.flash_attention
    from transformers import PreTrainedModel

    vars(transformers.integrations.flash_attention)["_flash_attention_forward"] = kernel
    if installed() < (5,):
        PreTrainedModel._check_and_enable_flash_attn_2 = classmethod(lambda cls, config, *_, **__: config)


def name_flash_attention(model: Any, kernel: Callable[..., Any]) -> None:
    """Modeling files before 5 import the kernel by name, and only where its package is there."""
    if installed() < (5,):
        vars(sys.modules[type(model).__module__])["_flash_attention_forward"] = kernel
