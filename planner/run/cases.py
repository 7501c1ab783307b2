"""What engines, torch and NCCL print when something fails: a pattern, what it means, what to do. Facts, no logic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One kind of failure: a pattern of the log, what it means, what to do. ``{0}`` ... are the pattern's groups."""

    kind: str
    pattern: str
    cause: str
    next_step: str


CASES = (
    Case(
        "disk_full",
        r"\[Errno 28\] No space left on device(?:: '([^']*)')?|No space left on device|"
        r"\[Errno 122\] Disk quota exceeded|\[Errno 27\] File too large|"
        r"PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+",
        "a file could not be written: the disk is full, or a quota or file size limit is reached",
        "make room (older checkpoints, or save_total_limit), then run it again: it resumes from the last whole "
        "checkpoint",
    ),
    Case(
        "host_oom",
        r"DefaultCPUAllocator: (?:can't|not enough memory).*?allocate (\d+) bytes|^\s*MemoryError\b|"
        r"Cannot allocate memory|DataLoader worker .*killed by signal: Killed|std::bad_alloc",
        "the host ran out of memory",
        "lower preprocessing_num_workers and dataloader_num_workers, leave offload out, or add host memory; "
        "`plan probe` shows what there is",
    ),
    Case(
        "port_taken",
        r"EADDRINUSE|[Aa]ddress already in use|port: (\d+).*(?:in use|failed to bind)",
        "the port of the rendezvous is taken by another program",
        "end that program, or set MASTER_PORT to a free port",
    ),
    Case(
        "missing_package",
        r"No module named '([\w.]+)'|The '([\w.\-\[\]]+[^']*)' distribution was not found|"
        r"PackageNotFoundError: (?!No package)([\w.\-]+)|requires the ([\w\-]+) (?:library|package)|"
        r"ImportError: .*?`?pip install ([\w\-]+)",
        "a package that the configuration needs is not installed: {0}",
        "install it in the engine's environment: pip install {0}",
    ),
)

LATER_CASES = (
    Case(
        "nccl_timeout",
        r"Watchdog caught collective operation timeout.*?OpType=(\w+)|"
        r"Timed out waiting \d+ms for (?:recv|send) operation|collective operation timeout",
        "a collective operation between the GPUs ran into its timeout: one rank did not come",
        "look in the log for the rank that is missing; a longer ddp_timeout helps where a rank was merely slow",
    ),
    Case(
        "nccl",
        r"ncclUnhandledCudaError|ncclSystemError|ncclInternalError|ncclRemoteError|ncclInvalidUsage|NCCL error in|"
        r"NCCL Error \d|NCCL WARN .*(?:fail|Error)|DistBackendError|gloo.*(?:Connection|timed out|failed)|"
        r"Connection closed by peer|Connection reset by peer",
        "the GPUs could not talk to each other",
        "NCCL_DEBUG=INFO in the environment makes NCCL say why",
    ),
    Case(
        "bad_data",
        r"(DatasetGenerationError|ArrowInvalid|JSONDecodeError|pyarrow\.lib\.\w+|Cannot find valid samples[^\n]*|"
        r"Undefined dataset [^\n]*|Cannot open data file [^\n]*|KeyError: '(?:instruction|output|messages|"
        r"conversations|prompt|chosen|rejected|text)'|UnicodeDecodeError[^\n]*)",
        "the data could not be read: {0}",
        "compare the file with dataset_info.json beside train.yaml, and look at the line that the log names",
    ),
    Case(
        "missing_model",
        r"(We couldn't connect to '[^']*'|is not a local folder and is not a valid model identifier|"
        r"Failed to load tokenizer|does not appear to have a file named [^\n]*|401 Client Error|GatedRepoError)",
        "the model could not be loaded: {0}",
        "download it first (hf download <model>), name a local folder as --model, or set HF_TOKEN for a gated model",
    ),
    Case(
        "bad_config",
        r"(Some keys are not used by the HfArgumentParser: [^\n]*|Template [^\n]* does not exist|"
        r"Output directory [^\n]*already exists and is not empty[^\n]*|Your setup doesn't support bf16/gpu[^\n]*)",
        "the engine refused the configuration: {0}",
        "change what it names in the plan's folder and run it again",
    ),
    Case(
        "cuda_error",
        r"(CUDA error: (?!out of memory)[^\n]*|Xid \(|device-side assert triggered|uncorrectable ECC error)",
        "the GPU reported an error: {0}",
        "`nvidia-smi -q` and the kernel's log (dmesg) say whether the card is broken; CUDA_LAUNCH_BLOCKING=1 shows "
        "which operation it was",
    ),
)

# On several machines: folders that are not the same one, or a rank elsewhere that is gone. What ended that rank stands
# in its machine's log, not here.
SEVERAL_MACHINES = (
    Case(
        "not_shared",
        r"Parent directory (\S*checkpoint-\d\S*) does not exist|No such file or directory: '([^']*checkpoint-\d[^']*)'",
        "this machine does not see the checkpoint that another one writes ({0}): their folders are not the same one",
        "put the plan's folder on storage that all machines see, at the same path on each, and start all of them again",
    ),
    Case(
        "lost_peer",
        r"(Timed out after \d+ seconds waiting for clients[^\n]*)",
        "not all machines came to the rendezvous: {0}",
        "start `plan run` on every machine within 15 minutes, each with its own NODE_RANK and the same MASTER_ADDR",
    ),
    Case(
        "lost_peer",
        r"(The client socket has (?:timed out|failed)[^\n]*trying to connect to [^\n]*)",
        "the first machine was not reached: {0}",
        "start it there too; MASTER_ADDR has to be its address as seen from here, and MASTER_PORT open between them",
    ),
    Case(
        "lost_peer",
        r"ncclRemoteError|remote process exit|Connection closed by (?:remote )?peer ?\[?([^\s\]<]*)|"
        r"(?:Read|Write) error \[([^\]]+)\].*(?:reset by peer|[Bb]roken pipe)|Connection reset by peer|"
        r"failed to send a keep-alive heartbeat",
        "a process on another machine ended, or the network to it broke",
        "its own log there says why; start `plan run` again on every machine",
    ),
)
