"""What a target needs beside the setup to write files, and what reading files gives back."""

from __future__ import annotations

from dataclasses import dataclass

from planner.data.mixing import Mixing
from planner.hardware.machine import Vendor
from planner.training import Dtype, TrainingSetup


@dataclass(frozen=True, kw_only=True)
class EmitContext:
    """The surroundings of one setup: where the model lies, the hardware it gets, the data it reads.

    ``gpus_per_node`` and ``nodes`` count the devices that take part; ``devices`` their indices on each node.
    ``hidden`` is the model's width in elements. ``ram_bytes`` is per node, ``host_spare_bytes`` what the
    job leaves of it, ``checkpoints_kept`` None: as many as the recipe says; ``mixing`` where ``dataset`` is
    a comma list of sets. None else is unknown.
    """

    model_path: str
    hidden: int
    gpus_per_node: int = 1
    nodes: int = 1
    devices: tuple[str, ...] = ("0",)
    gpu_names: tuple[str, ...] = ()
    vendor: Vendor = "nvidia"
    p2p: bool | None = None
    driver: str | None = None
    expandable_segments: bool = True
    has_bf16: bool | None = None
    ram_bytes: int | None = None
    host_spare_bytes: int | None = None
    checkpoints_kept: int | None = None
    cpu_cores: int | None = None
    template: str | None = None
    trust_remote_code: bool = False
    stored_quantization: str | None = None
    stored_dtype: Dtype = "bf16"
    dataset: str = "demo"
    eval_dataset: str | None = None
    samples: int | None = None
    mixing: Mixing | None = None
    report_to: str = "none"
    output_dir: str = "output"

    @property
    def world_size(self) -> int:
        """Processes of the run, one a GPU."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A setup as its files state it, and what in the files the setup cannot express (priced without it)."""

    setup: TrainingSetup
    warnings: tuple[str, ...] = ()
