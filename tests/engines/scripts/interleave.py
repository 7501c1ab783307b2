"""Samples of mixtures as datasets makes them. Argument: a JSON list of [counts, probabilities or null, strategy]."""

import json
import sys

from datasets import Dataset, interleave_datasets

NAMES = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
found = []
for counts, probs, strategy in json.loads(sys.argv[1]):
    sets = [Dataset.from_dict({"set": [number] * count}) for number, count in enumerate(counts)]
    mixed = interleave_datasets(sets, probabilities=probs, seed=42, stopping_strategy=NAMES[strategy])
    column = list(mixed["set"])
    found.append([len(column), [column.count(number) / len(column) for number in range(len(counts))]])
print("RESULT " + json.dumps(found))
