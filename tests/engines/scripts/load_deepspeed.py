"""DeepSpeed's own config class on JSON files. Prints file -> {stage, buckets, offload} as DeepSpeed understood them."""

import json
import sys
from pathlib import Path

from deepspeed.runtime.config import DeepSpeedConfig


def device_of(part):
    """DeepSpeed keeps what a file said as text and its own defaults as members of an enum."""
    return str(getattr(part.device, "value", part.device)) if part else "none"


answers = {}
for name in sys.argv[1:]:
    config = DeepSpeedConfig(json.loads(Path(name).read_text()))
    zero = config.zero_config
    answers[name] = {
        "stage": int(zero.stage),
        "reduce": zero.reduce_bucket_size,
        "allgather": zero.allgather_bucket_size,
        "prefetch": zero.prefetch_bucket_size,
        "persistence": zero.param_persistence_threshold,
        "max_live": zero.max_live_parameters,
        "sub_group": zero.sub_group_size,
        "overlap": zero.overlap_comm,
        "optimizer": device_of(zero.offload_optimizer),
        "param": device_of(zero.offload_param),
        "bf16": config.bfloat16_config.enabled,
        "fp16": config.float16_config.enabled,
    }
print("RESULT " + json.dumps(answers))
