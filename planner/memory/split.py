"""Model parallelism as a smaller model on each GPU: tensor, pipeline, context and expert parallelism.

Tensor parallelism divides heads, feed-forward widths and the vocabulary (Megatron-LM, arXiv 1909.08053); the residual
stream and the norms stay whole. A pipeline stage holds its share of the layers, and the first one keeps as
many micro batches as there are stages (1F1B, arXiv 2104.04473). Context parallelism divides the sequence, expert
parallelism the experts. DeepSpeed's AutoTP leaves the input embedding of an untied model whole
(``planner.memory.autotp``). No published peak was at hand to test these, which every estimate that uses them says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.errors import InputError
from planner.memory.autotp import cuts_vocabulary, is_autotp
from planner.model.spec import Attention, Block, Mlp, ModelSpec, Moe, Run
from planner.training import TrainingSetup


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What one GPU runs: ``spec`` and ``setup`` as if it were alone, over ``ranks`` data-parallel ranks.

    ``in_flight`` micro batches keep their activations at once. ``alone``: nothing is cut.
    """

    spec: ModelSpec
    setup: TrainingSetup
    ranks: int
    in_flight: int
    alone: bool = False


def split(setup: TrainingSetup, spec: ModelSpec, world: int) -> Split:
    """The share of one GPU of ``world``. Raises InputError where the sizes do not divide."""
    tensor, pipeline = setup.tensor_parallel, setup.pipeline_parallel
    context, expert = setup.context_parallel, setup.expert_parallel
    if tensor == pipeline == context == expert == 1:
        return Split(spec=spec, setup=setup, ranks=world, in_flight=1, alone=True)
    size = tensor * pipeline * context
    if world % size:
        raise InputError(
            f"tensor_parallel {tensor} x pipeline_parallel {pipeline} x context_parallel {context} = {size} does not "
            f"divide {world} GPUs"
        )
    ranks = world // size
    if ranks * tensor % expert:
        raise InputError(f"expert_parallel {expert} does not divide the {ranks * tensor} GPUs of a pipeline stage")
    return Split(
        spec=_with_vocabulary(_share(spec, tensor, pipeline, expert), spec, setup),
        setup=setup.but(seq_len=-(-setup.seq_len // context)) if context > 1 else setup,
        ranks=ranks,
        in_flight=min(pipeline, setup.gradient_accumulation_steps) if pipeline > 1 else 1,
    )


def _with_vocabulary(part: ModelSpec, whole: ModelSpec, setup: TrainingSetup) -> ModelSpec:
    """The rows of embedding and head that one rank holds: as divided, or as AutoTP leaves them."""
    if not is_autotp(setup):
        return part
    if not cuts_vocabulary(setup):
        return replace(part, vocab=whole.vocab)
    rest = 0 if whole.tied_embeddings else whole.vocab - part.vocab
    return replace(part, embedding_extra_rows=whole.embedding_extra_rows + rest)


@lru_cache(maxsize=256)
def _share(spec: ModelSpec, tensor: int, pipeline: int, expert: int) -> ModelSpec:
    runs = tuple(replace(run, block=_block(run.block, tensor, expert)) for run in spec.runs)
    return replace(spec, runs=_stage(runs, -(-spec.layers // pipeline)), vocab=-(-spec.vocab // tensor), parameters=0)


def _stage(runs: tuple[Run, ...], layers: int) -> tuple[Run, ...]:
    """The last ``layers`` layers: later layers of mixed models are the larger ones (dense first, experts after)."""
    taken: list[Run] = []
    for run in reversed(runs):
        number = min(run.count, layers)
        if number:
            taken.insert(0, replace(run, count=number))
        layers -= number
    return tuple(taken)


def _block(block: Block, tensor: int, expert: int) -> Block:
    mlp = _mlp(block.mlp, tensor) if block.mlp is not None else None
    moe = _moe(block.moe, tensor, expert) if block.moe is not None else None
    return replace(block, attention=_attention(block.attention, tensor), mlp=mlp, moe=moe)


def _attention(attention: Attention, tensor: int) -> Attention:
    if attention.heads % tensor:
        raise InputError(f"tensor_parallel {tensor} does not divide {attention.heads} attention heads")
    return replace(attention, heads=attention.heads // tensor, kv_heads=max(1, attention.kv_heads // tensor))


def _mlp(mlp: Mlp, tensor: int) -> Mlp:
    return replace(mlp, width=-(-mlp.width // tensor))


def _moe(moe: Moe, tensor: int, expert: int) -> Moe:
    if moe.experts % expert:
        raise InputError(f"expert_parallel {expert} does not divide {moe.experts} experts")
    shared = _mlp(moe.shared, tensor) if moe.shared is not None else None
    return replace(moe, experts=moe.experts // expert, expert=_mlp(moe.expert, tensor), shared=shared)
