"""What GRPO learns: a reward for every completion, higher is better. Write your own, and name it in train.yaml.

TRL calls ``reward_funcs: [rewards.likeness]`` with lists: prompts, completions, and every other column of prepared/,
here ``answer``. Rewards are compared within the completions of one prompt: equal ones teach nothing.
"""

from collections import Counter


def text_of(completion):
    """A completion's text: dialogues come as messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def likeness(completions, answer, **_):
    """The words that a completion and the data's answer have in common, as an F1 score between 0 and 1: a start."""
    return [f1(text_of(completion), right) for completion, right in zip(completions, answer, strict=True)]


def f1(said, right):
    """Harmonic mean of precision and recall over words."""
    words, wanted = Counter(said.lower().split()), Counter(right.lower().split())
    shared = sum((words & wanted).values())
    return 2 * shared / (sum(words.values()) + sum(wanted.values())) if shared else 0.0
