"""How weights, gradients and states lie on one GPU: the bridge from sharding to the timeline."""

from __future__ import annotations

from dataclasses import dataclass

ROOT_UNITS = frozenset({"embedding", "norm", "head"})  # what wrapping by transformer layer leaves in the root unit


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A group of parameters that is gathered, reduced and freed together: the embedding, one block, the head.

    ``frozen_bytes`` is what the frozen weights occupy as stored (quantized, 16-bit, fp32);
    ``trained`` counts trained elements, held in ``trained_bytes_each`` bytes an element.
    ``frozen`` counts frozen elements (logical weights, also where they are packed to 4 bit).
    """

    name: str
    count: int
    frozen: int
    frozen_bytes: int
    trained: int
    trained_bytes_each: int
    largest_trained: int = 0  # elements of the largest trained tensor
    tensors: int = 0  # number of parameter tensors, for allocator rounding and persistence thresholds
    small_elements: int = 0  # elements in tensors of one dimension (norms, biases)
    expert_elements: int = 0  # of those, elements in experts
    largest_frozen: int = 0  # elements of the largest frozen tensor
    buffer_bytes: int = 0  # of frozen_bytes, what GPTQ keeps in buffers and not in parameters: scales, group indices
    gradient_bytes_each: int | None = None  # where it differs from the regime's: modules trained whole beside adapters

    @property
    def held_bytes(self) -> int:
        """Bytes of one unsharded unit as held between steps."""
        return self.frozen_bytes + self.trained * self.trained_bytes_each

    def gradient_bytes(self, usual_bytes_each: int) -> int:
        """Bytes of this unit's gradients, each element in ``usual_bytes_each`` unless the unit has its own."""
        each = usual_bytes_each if self.gradient_bytes_each is None else self.gradient_bytes_each
        return self.trained * each

    @property
    def is_root(self) -> bool:
        """Embedding, final norm or head: not one of the repeated layers."""
        return self.name in ROOT_UNITS


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Bytes on one GPU, unit by unit where the timeline needs it.

    ``weights`` is resident for the whole step. ``gradients`` maps a unit's name to the gradient bytes that one
    such unit adds and leaves behind once its backward is done; ``gradients_carried`` are alive before the forward
    of the (last) micro batch already: flat gradient buffers, and what earlier micro batches accumulated.
    ``gradients_at_step`` are those alive while the optimizer runs (None: carried and all units' together).
    ``optimizer`` are the states (with master weights) after the first step. Everything else is alive for a while
    only: ``gathered_*`` unsharded copies of weights beside the shards, ``reducing`` gradient and reduce buffers
    from the first gradient to the end of backward, ``end_of_layer`` what a layer's gradients are reduced through when
    its backward is over and its activations are gone, ``resident_buffers`` communication buffers that live for the
    whole run, ``step_temporaries`` what the optimizer step allocates at its worst moment, ``end_of_backward`` what
    comes on top of ``reducing`` when the last gradient has arrived, ``load`` the peak of loading (copies of
    weights alone). Moments of their own, where an engine has them: ``gathered_start`` before the first layer,
    ``gathered_loss_backward`` and ``gathered_head`` (None: ``gathered_loss``), ``tail_reduced`` between the head and
    the layers, ``gathered_backward_last`` and ``reducing_first`` of the lowest and the uppermost layer (None: as the
    rest).
    """

    weights: int
    gradients: dict[str, int]
    optimizer: int
    load: int
    gathered_forward: int = 0
    gathered_start: int = 0
    gathered_loss: int = 0
    gathered_loss_backward: int | None = None
    gathered_head: int | None = None
    tail_reduced: int = 0
    gathered_backward: int = 0
    gathered_backward_last: int | None = None
    reducing: int = 0
    reducing_first: int | None = None
    resident_buffers: int = 0
    end_of_layer: int = 0
    end_of_backward: int = 0
    step_temporaries: int = 0
    gradients_carried: int = 0
    gradients_at_step: int | None = None
    notes: tuple[str, ...] = ()
