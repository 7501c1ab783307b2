"""The rule of thumb that a popular guide gives for full fine-tuning, to be shown beside the true figure."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True, slots=True)
class RuleOfThumb:
    """Gigabytes (1e9) by the guide's four terms; gradients, fp32 copies and logits are missing from it."""

    weights_gb: float
    optimizer_gb: float
    activations_gb: float
    framework_gb: float

    @property
    def total_gb(self) -> float:
        """The sum that the guide calls the memory of a run."""
        return self.weights_gb + self.optimizer_gb + self.activations_gb + self.framework_gb

    def words(self) -> str:
        """``14 + 28 + 5 + 1.5 = 48.5 GB``."""
        terms = (self.weights_gb, self.optimizer_gb, self.activations_gb, self.framework_gb)
        return f"{' + '.join(f'{term:.3g}' for term in terms)} = {self.total_gb:.3g} GB"


def rule_of_thumb(parameters: int, *, samples: int, seq_tokens: int) -> RuleOfThumb:
    """Weights of 2 bytes, Adam of twice the weights, 2.5 GB for each sample and 1,024 tokens, 1.5 GB of framework.

    What is wrong with it: LLaMA-Factory holds 4 + 4 + 8 bytes a parameter without DeepSpeed, and activations depend
    on layers, widths, checkpointing and the vocabulary, not on tokens alone.
    """
    weights_gb = 2 * parameters / GB
    return RuleOfThumb(weights_gb, 2 * weights_gb, 2.5 * samples * seq_tokens / 1024, 1.5)
