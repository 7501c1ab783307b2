"""Argument names of the installed LLaMA-Factory with their choices, as its argument parser has them."""

import json

import llamafactory.hparams.parser as parser
from transformers import HfArgumentParser

found = {}
for action in HfArgumentParser(parser._TRAIN_ARGS)._actions:
    choices = [getattr(choice, "value", choice) for choice in action.choices] if action.choices else None
    found[action.dest] = choices
print("RESULT " + json.dumps(found, default=str))
