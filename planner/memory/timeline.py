"""One training step as a timeline of phases; the peak is the largest of its moments.

Every moment is seven integers (the contract's parts); they sum to the allocated bytes of that moment exactly.
"""

from __future__ import annotations

from planner.memory.curves import final_norm
from planner.memory.generation import buffered_bytes, completion_tokens, gathered_bytes, moments, rollout_of
from planner.memory.habits import EMBEDDING_DROPOUT, SCALED_EMBEDDING, names_outputs_on
from planner.memory.loss import loss_bytes
from planner.memory.megatron import is_sequence_parallel
from planner.memory.ops import Mode
from planner.memory.outputs import cache_per_token
from planner.memory.regime import bytes_of
from planner.memory.result import Phase
from planner.memory.stretches import (
    Step,
    Stretch,
    as_gathered,
    fused_kernels,
    graphless,
    mode_of,
    named_cache,
    names_cache,
    sharding_casts,
    stretches_of,
    unchecked_inputs,
)
from planner.memory.tape import Moment
from planner.training import FSDP

Bytes7 = tuple[int, int, int, int, int, int, int]
INPUT_BYTES_PER_TOKEN = 32  # input ids, labels, attention mask, position ids, each int64
ORDER: tuple[Phase, ...] = ("load", "forward", "loss", "backward", "optimizer", "eval", "save")


class Timeline:
    """Runs the phases and keeps the largest moment of each."""

    def __init__(self, step: Step) -> None:
        self.step = step
        setup = step.setup
        sequences = setup.micro_batch_size * setup.sequences_per_sample
        self.tokens = sequences * setup.seq_len
        self.squares = self.tokens * setup.seq_len
        scored = completion_tokens(setup.seq_len) if setup.stage == "grpo" else setup.seq_len
        self.scored = sequences * scored  # tokens whose logits are made
        self.buffered = buffered_bytes(setup)
        self.mixed = sharding_casts(setup, step.regime) and not setup.is_adapter
        stream = step.regime.compute if self.mixed else step.regime.stream
        self.stream_each = bytes_of(stream) * step.spec.hidden
        self.stream = self.stream_each * self.tokens
        self.stretches = stretches_of(step)
        self.window = max(
            (m.at(self.tokens, self.squares) for s in self.stretches for m in s.curve.backward), default=0
        )
        self.loss = loss_bytes(setup, step.spec, step.regime, self.scored, head_trained=step.parts.head_trained)
        self.outputs = self.loss.outputs  # logits that a loop's name keeps alive until the next ones exist
        self.cache = sum(s.number * cache_per_token(step, s) for s in self.stretches) * self.tokens
        self.previous = self.outputs + self.cache if names_outputs_on(setup) else 0  # the last step's
        self.best: dict[Phase, Bytes7] = {}
        self.totals: dict[Phase, int] = {}
        layout = step.layout
        self.weights = layout.weights + step.extra_weights
        kept = sum(stretch.number * self._kept_by(stretch) for stretch in self.stretches)
        own = INPUT_BYTES_PER_TOKEN * self.tokens + self.buffered
        self.inputs = own + (step.in_flight - 1) * kept + self._leaf()
        self.always = (
            self.weights + self.inputs + layout.optimizer + layout.resident_buffers + step.workspace_bytes
        )  # alive at every moment of a step

    def at(
        self, phase: Phase, activations: int, *, gradients: int = 0, logits: int = 0, temporaries: int = 0,
        gathered: int = 0, moment: Moment | None = None,
    ) -> None:  # fmt: skip
        """One moment of the step; ``moment`` adds a block's live bytes, split into its parts."""
        if moment is not None:
            activations += moment.at(self.tokens, self.squares) - moment.gradient - moment.temporary
            gradients += moment.gradient
            temporaries += moment.temporary
        total = self.always + activations + gradients + logits + temporaries + gathered
        if total > self.totals.get(phase, -1):
            layout = self.step.layout
            self.totals[phase] = total
            self.best[phase] = (
                self.weights, gradients, layout.optimizer, activations + self.inputs, logits,
                temporaries + self.step.workspace_bytes, gathered + layout.resident_buffers,
            )  # fmt: skip

    def run(self) -> Timeline:
        """All phases of a step whose optimizer states exist."""
        self._load()
        if self.step.setup.stage == "grpo":
            self._generate("forward", None)
        below, casts = self._forward()
        self._loss_and_head(below, casts)
        self._backward(below)
        self._optimizer()
        self._evaluate()
        self._save()
        return self

    # -- phases ---------------------------------------------------------------------------------------

    def _load(self) -> None:
        layout = self.step.layout
        weights = max(layout.load, layout.weights) + self.step.extra_weights
        self.best["load"], self.totals["load"] = (weights, 0, 0, 0, 0, 0, 0), weights

    def _generate(self, phase: Phase, sequences: int | None) -> None:
        """GRPO makes its own samples before it learns from them: a forward pass that no graph remembers."""
        step = self.step
        gathered = gathered_bytes(step)
        for live in moments(step, rollout_of(step.setup, sequences)):
            self.at(phase, self._released + live.activations, logits=live.logits, temporaries=live.temporaries,
                    gathered=gathered)  # fmt: skip

    def _forward(self) -> tuple[int, int]:
        """Walk up the layers; returns the bytes they keep, and autocast's weight copies alive at the end."""
        layout = self.step.layout
        below, casts, first, named = self._narrow_start(), 0, True, 0
        self.at("forward", 0, gradients=layout.gradients_carried, logits=self.previous, gathered=layout.gathered_start)
        for stretch in self.stretches:
            each, cast = self._kept_by(stretch), stretch.curve.casts if stretch.checkpointed else 0
            before, name = stretch.number - 1, self.named(stretch)[0]
            beside = self._embedded() if before or not first else 0
            for moment in stretch.curve.forward:
                self.at(
                    "forward", below + before * (each + name) + named + beside + self.stream,
                    gradients=layout.gradients_carried, logits=self.previous, temporaries=casts + before * cast,
                    gathered=layout.gathered_forward, moment=moment,
                )  # fmt: skip
            below += stretch.number * each
            casts += stretch.number * cast
            named += stretch.number * name
            first = False
        return below, casts

    def named(self, stretch: Stretch) -> tuple[int, int]:
        """Bytes of one layer's outputs that the model names to the end of its forward pass, and of their copies."""
        step = self.step
        if not stretch.checkpointed or not names_cache(step.setup, step.spec):
            return 0, 0
        held, copied = named_cache(stretch.layer, step.regime)
        return held * self.tokens, copied * self.tokens

    def _embedded(self) -> int:
        """The model's forward pass names its embedded inputs to the end; as a checkpoint they are kept anyway."""
        if self.stretches[0].checkpointed and self._kept_by(self.stretches[0]):
            return 0
        return bytes_of(self.step.regime.embedding) * self.step.spec.hidden * self.tokens

    def _leaf(self) -> int:
        """Adapters under checkpointing: the embedding's output is made a leaf that wants a gradient (peft's
        enable_input_require_grads). Where the first layer reads something made from it, both live.
        """
        step, spec = self.step, self.step.spec
        normed, drops = spec.embedding_norm != "none", spec.model_type in EMBEDDING_DROPOUT
        if step.parts.embedding_trained:
            return self._trained_mask()
        if not step.setup.is_adapter or step.setup.gradient_checkpointing is False:
            return 0
        made = normed or drops or spec.model_type in SCALED_EMBEDDING or spec.scaled_embedding
        each = bytes_of(step.regime.embedding) if made or spec.position_embeddings else 0
        each += 1 if drops else 0  # the mask
        each += 4 if normed and step.regime.autocast else 0  # layer norm keeps its fp32 input
        return each * spec.hidden * self.tokens

    def _trained_mask(self) -> int:
        """The dropout's mask behind a trained embedding; what was dropped from is not kept."""
        dropped = self.step.parts.embedding_trained and self.step.spec.model_type in EMBEDDING_DROPOUT
        return self.step.spec.hidden * self.tokens if dropped else 0

    def _narrow_start(self) -> int:
        """The first checkpoint is the embedding's output: narrower where the stream widens behind it (0 or less)."""
        regime = self.step.regime
        if not self.stretches or not self.stretches[0].checkpointed or not self._kept_by(self.stretches[0]):
            return 0
        if self.step.spec.embedding_norm != "none":
            return 0
        return (bytes_of(regime.embedding) - bytes_of(regime.stream)) * self.step.spec.hidden * self.tokens

    def _kept_by(self, stretch: Stretch) -> int:
        """Bytes that one layer keeps for backward: what its graph saved, or its checkpointed input."""
        if not stretch.checkpointed:
            return stretch.curve.kept.at(self.tokens, self.squares)
        if stretch.layer.kind == "frozen":
            return 0
        setup = self.step.setup
        offloaded = setup.activation_offload or (setup.unsloth and setup.engine == "llamafactory")
        own = unchecked_inputs(setup, stretch.layer, self.step.regime) * self.tokens
        kept = -(-self.stream // setup.tensor_parallel) if is_sequence_parallel(setup) else self.stream
        return own if offloaded else kept + own

    def _loss_and_head(self, below: int, casts: int) -> None:
        step, layout = self.step, self.step.layout
        norm_kept, norm_out = final_norm(step.spec, self._norm_mode())
        norm_kept, norm_out = norm_kept * self.tokens, norm_out * self.tokens
        loss, head_cast, gathered = self.loss, self._head_cast(), layout.gathered_loss
        gradients = layout.gradients_carried + loss.kept
        kept, live = below + norm_kept + norm_out, casts
        if step.setup.stage == "dpo":  # the reference runs when autocast has let go of the policy's copies
            self.at("loss", kept, logits=loss.forward // 2, gradients=gradients, temporaries=casts + head_cast)
            live = 0
        named, copied = (sum(s.number * self.named(s)[each] for s in self.stretches) for each in (0, 1))
        self.at("loss", kept + named, logits=loss.forward + self.previous, gradients=gradients,
                temporaries=live + head_cast + loss.temporary, gathered=gathered)  # fmt: skip
        if loss.converted or copied:  # the forward pass is over, and so is its name for the last hidden states
            returned = below + norm_kept + (norm_out if step.parts.head_trained else 0)
            self.at("loss", returned + named + copied, logits=loss.converted or loss.forward, gradients=gradients,
                    temporaries=head_cast, gathered=gathered)  # fmt: skip
        if loss.repeated:
            old = below + norm_kept + norm_out + 2 * step.pinned_per_token * self.tokens
            for logits, copies in ((loss.repeated, 0), (loss.head, loss.head_temporary)):
                self.at("loss", old, logits=logits, gradients=gradients, temporaries=copies, gathered=gathered)
        if layout.gathered_loss_backward is not None:
            gathered = layout.gathered_loss_backward
        held = below + norm_kept + (norm_out if step.parts.head_trained else 0)
        self.at(
            "backward",
            held,
            logits=loss.backward,
            gradients=gradients + loss.head_gradient,
            temporaries=head_cast,
            gathered=gathered,
        )
        gathered = layout.gathered_loss if layout.gathered_head is None else layout.gathered_head
        for logits, head in (
            (loss.head, self._head_gradient(bytes_of(step.regime.compute))),
            (0, self._widened_head()),
        ):
            self.at(
                "backward", held + norm_out, logits=logits, gradients=gradients + head,
                temporaries=head_cast + loss.head_temporary, gathered=gathered,
            )  # fmt: skip
        self.at("backward", below + norm_out, gradients=layout.gradients_carried, gathered=layout.tail_reduced)

    def _head_gradient(self, itemsize: int) -> int:
        """The head's weight gradient as its matmul makes it."""
        step = self.step
        if not step.parts.head_trained or step.regime.loss == "fused_linear":
            return 0
        if step.regime.loss == "tiles":  # summed in fp32, then cast
            itemsize = 4 if step.regime.gradient == "fp32" else 4 + bytes_of(step.regime.gradient)
        return step.spec.vocab * step.spec.hidden * itemsize

    def _widened_head(self) -> int:
        """Under autocast the head's 16-bit gradient is cast to the weight's fp32 while both exist."""
        regime = self.step.regime
        if regime.autocast is None or (self.step.setup.parallelism or "none") in FSDP or regime.loss == "tiles":
            return 0
        return self._head_gradient(bytes_of(regime.compute) + bytes_of(regime.gradient))

    def _norm_mode(self) -> Mode:
        """The final norm trains with the whole model only; it belongs to no layer, but to FSDP's root unit."""
        step = self.step
        trained = not step.setup.is_adapter and step.setup.method not in ("freeze", "badam")
        regime = as_gathered(step.setup, step.regime, adapted=step.setup.is_adapter)
        return mode_of(
            regime, frozenset(), frozenset(), trained, 0, False, False, "flash",
            step.setup.liger_kernel, fused_kernels(step.setup), True, False,
        )  # fmt: skip

    def _head_cast(self) -> int:
        """Autocast's 16-bit copy of an fp32 head, alive from its matmul to its backward."""
        regime, spec = self.step.regime, self.step.spec
        held = regime.whole if self.step.setup.is_adapter and self.step.parts.head_trained else regime.head
        if regime.loss == "tiles":  # cast slice by slice, outside autocast's cache
            return 0
        if regime.autocast is None or held != "fp32" or (self.step.setup.parallelism or "none") in FSDP:
            return 0
        return spec.vocab * spec.hidden * bytes_of(regime.compute)

    def _backward(self, below: int) -> None:
        """Walk down the layers: kept tensors shrink, gradients grow; each stretch is worst at one of its ends."""
        layout = self.step.layout
        gradients = layout.gradients_carried + layout.gradients.get("head", 0) + self._tied_head()
        finished, cached, layers = 0, 0, sum(stretch.number for stretch in self.stretches)
        for stretch in reversed(self.stretches):
            per_layer, each = layout.gradients.get(stretch.layer.name, 0), self._kept_by(stretch)
            if stretch.checkpointed:  # contexts, and what they name, stay to the end of backward
                each -= unchecked_inputs(self.step.setup, stretch.layer, self.step.regime) * self.tokens
            own, cache = each if stretch.checkpointed else 0, cache_per_token(self.step, stretch) * self.tokens
            for done in self._worst(stretch.number):
                rest = below - (done + 1) * each + own + self._lingering(finished + done, each) + cached + done * cache
                gathered = self._gathered_backward(finished + done, layers)
                for moment in stretch.curve.backward:
                    self.at("backward", rest, gradients=gradients + done * per_layer, logits=self.outputs,
                            gathered=gathered, moment=moment)  # fmt: skip
                if layout.end_of_layer:
                    self.at("backward", rest + self.stream, gradients=gradients + done * per_layer,
                            logits=self.outputs, gathered=gathered + layout.end_of_layer)  # fmt: skip
            below -= stretch.number * each
            finished += stretch.number
            cached += stretch.number * cache
            gradients += stretch.number * per_layer
        self._embedding(gradients)

    def _worst(self, number: int) -> set[int]:
        """Layers of a stretch that may be its worst: its ends, and their neighbours where the ends have own buffers."""
        ends, layout = {0, number - 1}, self.step.layout
        inner = {min(1, number - 1), max(0, number - 2)}
        return ends if layout.gathered_backward_last is None and layout.reducing_first is None else ends | inner

    def _gathered_backward(self, done: int, layers: int) -> int:
        """Gathered weights and reduce buffers beside the layer that comes after ``done`` others."""
        layout = self.step.layout
        gathered, reducing = layout.gathered_backward, layout.reducing
        if done == layers - 1 and layout.gathered_backward_last is not None:
            gathered = layout.gathered_backward_last
        if done == 0 and layout.reducing_first is not None:
            reducing = layout.reducing_first
        return gathered + reducing

    def _tied_head(self) -> int:
        """The head's gradient of tied embeddings waits in the engine's buffer until the embedding's arrives."""
        parts, spec = self.step.parts, self.step.spec
        if not (parts.embedding_trained and parts.head_trained and spec.tied_embeddings):
            return 0
        if not self.step.layout.gradients.get("embedding", 0):  # gradients are taken away as they come
            return 0
        return spec.vocab * spec.hidden * bytes_of(self.step.regime.gradient)

    def _lingering(self, done: int, boundary: int) -> int:
        """FSDP1 with frozen layers: inputs of finished layers and their gradients stay until backward ends."""
        extra = self.step.kept_per_layer_token * self.tokens
        return done * boundary + max(0, done - 1) * extra if extra else 0

    def _embedding(self, gradients: int) -> None:
        """The embedding's gradient arrives last. A tied one is added to the head's: out of place, because the head's is
        a transposed view (input_buffer.cpp), unless a cast, a compiled graph or a fused loss made it anew.
        """
        step, layout = self.step, self.step.layout
        arriving = layout.gradients.get("embedding", 0)
        anew = step.regime.autocast is not None or step.setup.torch_compile or step.regime.loss == "fused_linear"
        summed = 0 if anew else self._tied_head()
        last = self.stream + self.cache - self._trained_mask()
        self.at("backward", last, gradients=gradients + arriving + summed, logits=self.outputs,
                gathered=layout.reducing + layout.end_of_backward)  # fmt: skip
        if step.setup.gradient_accumulation_steps > 1 and step.parts.trained:
            largest = max(unit.largest_trained for unit in step.parts.units) * bytes_of(step.regime.gradient)
            self.at("backward", last, gradients=gradients + arriving + largest, logits=self.outputs,
                    gathered=layout.reducing)  # fmt: skip

    def _optimizer(self) -> None:
        layout = self.step.layout
        gradients = layout.gradients_at_step
        if gradients is None:
            counts = {unit.name: unit.count for unit in self.step.parts.units}
            gradients = layout.gradients_carried + sum(counts[n] * size for n, size in layout.gradients.items())
        self.at("optimizer", self._released + self.cache, gradients=gradients, logits=self.outputs,
                temporaries=layout.step_temporaries)  # fmt: skip

    @property
    def _released(self) -> int:
        """After backward nothing but the batch itself is left of ``inputs``."""
        return INPUT_BYTES_PER_TOKEN * self.tokens + self.buffered - self.inputs

    def _save(self) -> None:
        """A checkpoint is written from the shards; sharding engines gather one unit at a time for it."""
        self.at("save", self._released, gathered=self.step.layout.gathered_forward)

    def _evaluate(self) -> None:
        """Evaluation keeps nothing for backward; logits are materialised (Liger's fused loss only trains)."""
        step, batch = self.step, self.step.setup.eval_micro_batch_size
        if batch is None:
            return
        if step.setup.stage == "grpo":
            self._generate("eval", batch)
        tokens = batch * step.setup.seq_len * step.setup.sequences_per_sample
        squares = tokens * step.setup.seq_len
        extra = INPUT_BYTES_PER_TOKEN * (tokens - self.tokens)
        hidden = tokens * step.spec.hidden * bytes_of(step.regime.stream)
        for layer in step.parts.layers:
            for moment in graphless(step, layer).forward:
                self.at("eval", extra + hidden + moment.at(tokens, squares), gathered=step.layout.gathered_forward)
        _, norm_out = final_norm(step.spec, self._norm_mode())
        width = 8 if step.regime.compute == "fp32" else 10
        logits = width * step.spec.vocab * tokens
        if step.setup.stage == "grpo":  # the loss of training, on the completions
            scored = batch * completion_tokens(step.setup.seq_len)
            logits = loss_bytes(step.setup, step.spec, step.regime, scored, head_trained=False).forward
        self.at("eval", extra + norm_out * tokens, logits=logits,
                temporaries=self._head_cast(), gathered=step.layout.gathered_loss)  # fmt: skip
