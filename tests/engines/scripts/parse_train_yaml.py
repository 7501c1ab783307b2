"""LLaMA-Factory's own parser on the train.yaml of many folders, in one process.

Arguments: folders. Prints one JSON object: folder -> null, or what was refused. With WORLD_SIZE set the rules of
distributed training apply as well. What a machine without GPU cannot do (bf16, optional packages) is patched away.
"""

import gc
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from unittest import mock

import llamafactory.hparams.parser as parser
from omegaconf import OmegaConf
from transformers import HfArgumentParser


def words(values):
    """The YAML as a command line: unlike a dict, argparse checks types and choices."""
    argv = []
    for key, value in values.items():
        if value is not None:
            argv += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return argv


def installed(requirement, mandatory=False):
    name = requirement.replace(">", " ").replace("=", " ").replace("<", " ").split()[0]
    try:
        version(name)
    except PackageNotFoundError:
        return
    original(requirement, mandatory)


def problem_of(folder):
    os.chdir(folder)
    values = OmegaConf.to_container(OmegaConf.load("train.yaml"))
    argument_parser = HfArgumentParser(parser._TRAIN_ARGS)
    try:
        *_, left = argument_parser.parse_args_into_dataclasses(
            args=[*words(values), "--use_cpu", "true"], return_remaining_strings=True
        )
        if left:
            return f"unknown: {left}"
        gc.collect()
        parser.get_train_args({**values, "use_cpu": True})
    except SystemExit:
        return "argparse refused a type or a choice"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


original = parser.check_version
with (
    mock.patch.object(parser, "is_torch_bf16_gpu_available", lambda: True),
    mock.patch.object(parser, "check_version", installed),
):
    answers = {}
    for folder in sys.argv[1:]:
        answers[folder] = problem_of(folder)
        gc.collect()
print("RESULT " + json.dumps(answers))
