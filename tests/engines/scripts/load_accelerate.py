"""accelerate's own loader and launch validation on YAML files. Prints file -> the environment a worker would get."""

import json
import sys

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

parser = launch_command_parser()
known = {action.dest for action in parser._actions}
answers = {}
for name in sys.argv[1:]:
    config = load_config_from_file(name)
    unknown = sorted(set(config.fsdp_config or {}) - known)
    args = parser.parse_args(["--config_file", name, "-m", "llamafactory.launcher", "train.yaml"])
    args, _, mixed = _validate_launch_command(args)
    environment = prepare_multi_gpu_env(args)
    answers[name] = {
        "unknown": unknown,
        "processes": args.num_processes,
        "machines": args.num_machines,
        "mixed_precision": args.mixed_precision,
        "environment": {key: environment[key] for key in environment if key.startswith(("FSDP", "ACCELERATE"))},
    }
print("RESULT " + json.dumps(answers))
