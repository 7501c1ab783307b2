"""The host: memory, shared memory, limits of the kernel. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from planner.run.checks.records import Limit, Need, Surroundings, failed, passed, warned
from planner.run.records import Check
from planner.units import GIB, show_gib

# One connection of NCCL's shared-memory transport, as its failures state it (github.com/NVIDIA/nccl issues 342, 525),
# and the channels of a ring on PCIe machines (issue 1518). 64 MB are enough for two ranks and not for four.
SEGMENT_BYTES = 9_637_888
CHANNELS = 2
ADVISED_SHARED_BYTES = GIB  # NCCL user guide, troubleshooting, shared memory: docker run --shm-size=1g
PREFETCHED = 2  # batches that each worker of torch's DataLoader keeps ready (prefetch_factor)
# 1024 is what Linux gives a process and what trainers run under everywhere; torch with CUDA, NCCL and its data set
# opens a hundred or two by itself.
USUAL_FILES, LEAST_FILES = 1024, 256
# Threads beside the kernel's: autograd, NCCL, the CUDA driver, pinning, logging; a worker has its OpenMP ones.
THREADS_A_RANK, THREADS_A_WORKER = 64, 8


def host(need: Need, here: Surroundings) -> Iterator[Check]:
    """Memory first: the kernel kills without a word."""
    yield _memory(need, here)
    yield from _shared(need, here)
    yield from _files(here.host.open_files)
    yield from _locked(need, here.host.locked_bytes)
    yield from _tasks(need, here)


def _memory(need: Need, here: Surroundings) -> Check:
    total, free = here.machine.ram_bytes, here.machine.ram_free_bytes
    required = need.estimate.host_bytes + (need.ranks * need.estimate.allocated_bytes if need.on_cpu else 0)
    whose = "this container" if here.host.in_container else "this machine"
    if total is None or free is None:
        return warned("host memory", f"how much there is is not known; {show_gib(required)} are needed")
    if total < required and not need.on_cpu:
        sentence = f"{whose} has {show_gib(total)}, and {show_gib(required)} are needed: the kernel would kill the run"
        return failed("host memory", sentence, _less(here))
    sentence = f"{show_gib(free)} of {show_gib(total)} free, {show_gib(required)} needed"
    if free >= required:
        return passed("host memory", sentence)
    if need.on_cpu or free + (here.host.swap_free_bytes or 0) >= required:
        return warned("host memory", f"{sentence}: it will swap or run short", "end what else holds memory")
    return failed("host memory", sentence, f"end what else holds memory, or {_less(here)}")


def _less(here: Surroundings) -> str:
    more = "raise the container's memory limit, or " if here.host.in_container else ""
    return f"{more}plan again with --ram so that less is kept on the host (fewer workers, no offload)"


def _shared(need: Need, here: Surroundings) -> Iterator[Check]:
    """Ranks without peer-to-peer talk through it, and data workers hand over their batches in it."""
    volume = here.host.shared
    batches = need.ranks * need.loader_workers * PREFETCHED * need.batch_bytes
    talks = need.ranks > 1 and not need.on_cpu
    through_host = talks and not here.machine.links.nvlink and here.machine.links.p2p is not True
    required = batches + (need.ranks * CHANNELS * SEGMENT_BYTES if through_host else 0)
    if volume is None or not (talks or batches):
        return
    sentence = f"{show_gib(volume.free_bytes)} free in {volume.path}"
    if volume.free_bytes < required:
        yield failed("shared memory", f"{sentence}, and {show_gib(required)} are needed", _more_shared(need, talks))
    elif talks and volume.total_bytes < ADVISED_SHARED_BYTES:
        yield warned("shared memory", f"{sentence}: NCCL advises 1 GiB for several ranks", _more_shared(need, talks))
    else:
        yield passed("shared memory", sentence)


def _more_shared(need: Need, talks: bool) -> str:
    other = "" if talks or not need.loader_workers else ", or set dataloader_num_workers to 0"
    return f"start the container with --shm-size=1g or --ipc=host{other}"


def _files(limit: Limit | None) -> Iterator[Check]:
    if limit is None:
        return
    if limit.soft is None or limit.soft >= USUAL_FILES:
        yield passed("open files", f"up to {'any number' if limit.soft is None else limit.soft}")
        return
    can_raise = limit.hard is None or limit.hard >= USUAL_FILES
    remedy = "run `ulimit -n 65536`" if limit.hard is None else f"run `ulimit -n {min(65536, limit.hard)}`"
    remedy = remedy if can_raise else "raise the hard limit (container: --ulimit nofile=65536)"
    sentence = f"a process may open {limit.soft}, and trainers count on {USUAL_FILES}"
    yield (failed if limit.soft < LEAST_FILES else warned)("open files", sentence, remedy)


def _locked(need: Need, limit: Limit | None) -> Iterator[Check]:
    """Memory that InfiniBand registers and DeepSpeed's NVMe engine locks counts; CUDA's pinned memory does not."""
    asks = "InfiniBand" if need.planned.nodes > 1 else "NVMe offload" if need.setup.offload == "nvme" else None
    if limit is None or asks is None:
        return
    if limit.soft is None:
        yield passed("locked memory", "unlimited")
        return
    sentence = f"{show_gib(limit.soft)} may be locked, and {asks} locks its buffers"
    yield warned("locked memory", sentence, "run `ulimit -l unlimited` (container: --ulimit memlock=-1)")


def _tasks(need: Need, here: Surroundings) -> Iterator[Check]:
    """Processes and threads count alike."""
    facts, workers = here.host, need.ranks * need.loader_workers
    rooms = [] if facts.tasks_left is None else [facts.tasks_left]
    if facts.processes is not None and facts.processes.soft is not None and facts.tasks is not None:
        rooms.append(facts.processes.soft - facts.tasks)
    if not rooms:
        return
    room, processes = min(rooms), need.ranks + workers + need.preprocessing_workers
    threads = need.ranks * THREADS_A_RANK + workers * THREADS_A_WORKER
    sentence = f"{max(0, room)} more may start; the run has {processes}, with about {threads} threads"
    remedy = "run `ulimit -u unlimited` (container: a higher --pids-limit), or set fewer data workers"
    if room < processes:
        yield failed("processes", sentence, remedy)
    elif room < threads:
        yield warned("processes", sentence, remedy)
    else:
        yield passed("processes", f"{room} more may start")
