"""A small trainer as real processes: llamafactory-cli, its torchrun and workers in sessions of their own.

Stands in for the engine in tests of what `plan run` does with processes, logs and checkpoints: it reads train.yaml and
the words behind it, writes LLaMA-Factory's trainer_log.jsonl and checkpoints, resumes, and fails as LLAMAFACTORY_FAKE
(a JSON object) asks. Standard library only.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB "
    "of which 13.25 MiB is free. Including non-PyTorch memory, this process has 23.66 GiB memory in use. "
    "Of the allocated memory 22.90 GiB is allocated by PyTorch, and 310.00 MiB is reserved by PyTorch but unallocated."
)
FRAMES = """Traceback (most recent call last):
  File "/opt/llamafactory/launcher.py", line 185, in <module>
    run_exp()
  File "/opt/transformers/trainer.py", line 3750, in training_step
    self.accelerator.backward(loss, **kwargs)
  File "/opt/torch/autograd/__init__.py", line 354, in backward
    _engine_run_backward(
"""


def settings(words: list[str]) -> dict[str, str]:
    values = {}
    for line in Path(words[0]).read_text().splitlines():
        key, sign, text = line.partition(":")
        if sign and not line.startswith(("#", " ")):
            values[key.strip()] = text.strip().strip("'\"")
    return values | dict(word.split("=", 1) for word in words[1:])


def fault() -> dict:
    return json.loads(os.environ.get("LLAMAFACTORY_FAKE", "{}"))


def cli(words: list[str]) -> int:
    """Starts torchrun where it is told to, and dies of SIGTERM without passing it on."""
    if os.environ.get("FORCE_TORCHRUN") != "1":
        return worker(words[1:])
    done = subprocess.run([sys.executable, __file__, "torchrun", *words[1:]])
    if done.returncode:
        print("subprocess.CalledProcessError: Command 'torchrun' returned non-zero exit status 1.", file=sys.stderr)
    return 1 if done.returncode else 0


def torchrun(words: list[str]) -> int:
    count, node = int(os.environ["NPROC_PER_NODE"]), int(os.environ.get("NODE_RANK", "0"))
    world = count * int(os.environ.get("NNODES", "1"))
    workers = []
    for rank in range(count):
        ranked = {**os.environ, "RANK": str(node * count + rank), "WORLD_SIZE": str(world)}
        command = [sys.executable, __file__, "worker", *words]
        workers.append(subprocess.Popen(command, env=ranked, start_new_session=True))

    def end(number: int, _: object) -> None:
        for each in workers:
            each.terminate()
        for each in workers:
            each.wait()
        sys.exit(1)

    signal.signal(signal.SIGTERM, end)
    if fault().get("kind") == "kill worker":
        time.sleep(fault().get("after_s", 0.5))
        workers[1].kill()
    while any(each.poll() is None for each in workers):
        failed = [each for each in workers if each.poll()]
        if failed:
            break
        time.sleep(0.02)
    bad = [(rank, each) for rank, each in enumerate(workers) if each.poll()]
    for each in workers:
        if each.poll() is None:
            each.terminate()
            each.wait()
    if bad:
        rank, each = bad[0]
        print("torch.distributed.elastic.multiprocessing.errors.ChildFailedError:", file=sys.stderr)
        name = signal.Signals(-each.returncode).name if each.returncode < 0 else ""
        print(f"Root Cause (first observed failure):\n[0]:\n  rank      : {rank}", file=sys.stderr)
        print(f"  exitcode  : {each.returncode} (pid: {each.pid})  ({name})", file=sys.stderr)
    return 1 if bad else 0


class Barrier:
    """Where the ranks wait for each other at every step, as collectives and OpenMP do: no core is let go of."""

    def __init__(self, path: Path, rank: int, ranks: int) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * ranks)
            self._steps = memoryview(mmap.mmap(file.fileno(), 8 * ranks)).cast("q")
        self._rank = rank

    def wait(self, step: int) -> None:
        self._steps[self._rank] = step
        while min(self._steps) < step:
            pass


def last_checkpoint(output: Path) -> int:
    steps = [int(each.name.split("-")[1]) for each in output.glob("checkpoint-*") if each.name.split("-")[1].isdigit()]
    return max(steps, default=0)


def save(output: Path, step: int) -> None:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"w" * 100_000)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def worker(words: list[str]) -> int:
    rank, asked, values = int(os.environ.get("RANK", "0")), fault(), settings(words)
    total, every = int(values.get("max_steps", "20")), int(values["save_steps"])
    micro = int(values["per_device_train_batch_size"])
    output = Path(values["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    first = last_checkpoint(output) if total > 2 else 0
    if first:
        print(
            f"Resuming training from {values.get('resume_from_checkpoint', output / f'checkpoint-{first}')}.",
            flush=True,
        )
    batch = micro * int(values["gradient_accumulation_steps"]) * int(os.environ.get("WORLD_SIZE", "1"))
    together = Barrier(output / "barrier", rank, int(os.environ.get("WORLD_SIZE", "1"))) if "rounds" in asked else None
    for step in range(first + 1, total + 1):
        if together is not None:
            sum(range(asked["rounds"]))  # the same work whoever watches
            together.wait(step)
        else:
            time.sleep(asked.get("step_s", 0.02))
        if rank == 0:
            entry = {"current_steps": step, "total_steps": total, "loss": 4.0 / step, "lr": 1e-5}
            entry |= {"epoch": step / 10, "at": time.time()}
            entry |= {"throughput": 1234.5, "percentage": 100 * step / total, "effective_batch": batch}
            if asked.get("kind") == "nan" and step >= asked["at"]:
                entry["loss"] = float("nan")
            with (output / "trainer_log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            if step % every == 0:
                save(output, step)
        if total > 2 and step == asked.get("at"):
            fail(asked, micro, output)
    return 0


def fail(asked: dict, micro: int, output: Path) -> None:
    kind = asked["kind"]
    if kind == "oom" and micro > asked["above"]:
        sys.exit(FRAMES + OOM)
    if kind == "exit":
        sys.exit(asked["say"])
    if kind == "hang":
        while True:
            time.sleep(3600)
    if kind == "flood":
        line = b"W1120 something happened that is said again and again and again and again and again and again\n"
        for _ in range(asked["megabytes"]):
            os.write(1, line * ((1 << 20) // len(line)))
    if kind == "once" and not (output / "failed-once").exists():
        (output / "failed-once").touch()
        sys.exit(asked["say"])
    if kind == "write":
        with (output / "big").open("wb") as file:
            for _ in range(asked["megabytes"]):
                file.write(b"x" * (1 << 20))
    if kind == "memory":
        held = []
        for _ in range(asked["megabytes"]):
            held.append(bytearray(b"x" * (1 << 20)))


if __name__ == "__main__":
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    sys.exit(
        {"torchrun": torchrun, "worker": worker}.get(role, cli)(
            sys.argv[2:] if role in ("torchrun", "worker") else sys.argv[1:]
        )
    )
