"""What true messages are taken for; `tests/run/messages` names where each was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.run.diagnose import Evidence, diagnose
from planner.run.logs import Tail
from planner.run.nccl import remedy_for
from planner.run.oom import find_oom
from planner.units import GIB, MIB

MESSAGES = Path(__file__).with_name("messages")


def lines(name: str) -> list[str]:
    return (MESSAGES / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        (
            "cuda_oom_new",
            "cuda_oom",
            "GPU 2 (rank 2) ran out of memory while the model was loaded: it asked for 4.2 GiB",
        ),
        ("cuda_oom_old", "cuda_oom", "it asked for 2.9 GiB more, 20 MiB were free"),
        ("cuda_oom_2_1", "cuda_oom", "it asked for 32 MiB more, 42 MiB were free and it held 3.4 GiB"),
        ("cuda_oom_neighbour", "neighbour", "another program (python 15367) holds 9.3 GiB of GPU 0"),
        ("worker_sigkill", "killed", "process 28285 was ended from outside (SIGKILL)"),
        ("gloo_timeout", "nccl_timeout", "timeout"),
        ("cpu_allocator", "host_oom", "host ran out of memory"),
        ("disk_full_torch_save", "disk_full", "the disk is full"),
        ("disk_quota", "disk_full", "the disk is full"),
        ("port_taken", "port_taken", "port"),
        ("nccl_shm", "nccl", "could not talk"),
        ("nccl_timeout", "nccl_timeout", "one rank did not come"),
        ("missing_package", "missing_package", "bitsandbytes"),
        ("unknown_dataset", "bad_data", "Undefined dataset nope"),
        ("missing_model", "missing_model", "couldn't connect"),
        ("bad_config", "bad_config", "lora_rnk"),
        ("harmless_warning", "unknown", "0 active drivers"),
    ],
)
def test_a_true_message(name: str, kind: str, told: str) -> None:
    found = diagnose(Evidence(exit_status=1, lines=lines(name), neighbours=("python 15367",)))
    assert found is not None
    assert (found.kind, told in found.cause) == (kind, True), found.cause
    assert found.next_step


ELSEWHERE = {
    "not_shared": "this machine does not see the checkpoint that another one writes (output/checkpoint-2.part):",
    "gloo_lost_peer": "a process on another machine ended, or the network to it broke",
    "nccl_lost_peer": "a process on another machine ended, or the network to it broke",
    "peer_never_came": "not all machines came to the rendezvous: Timed out after 9 seconds waiting for clients. 1/2",
    "first_machine_absent": "the first machine was not reached: The client socket has timed out after 8000ms while",
}


KINDS = {"not_shared": "not_shared"}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_on_several_machines_a_peer_that_is_gone_is_named_as_such(name: str) -> None:
    found = diagnose(Evidence(exit_status=1, lines=lines(name), nodes=2))
    assert found is not None
    assert (found.kind, found.cause.startswith(ELSEWHERE[name])) == (KINDS.get(name, "lost_peer"), True), found.cause
    alone = diagnose(Evidence(exit_status=1, lines=lines(name)))
    assert alone is not None
    assert alone.kind in ("nccl", "unknown")  # on one machine it is no other machine's fault


def test_a_failure_of_this_machines_own_counts_before_the_peers_that_follow() -> None:
    own = {"cuda_oom_new": "cuda_oom", "worker_sigkill": "killed", "missing_package": "missing_package"}
    for name, kind in own.items():
        found = diagnose(Evidence(exit_status=1, lines=[*lines("gloo_lost_peer")[:12], *lines(name)], nodes=2))
        assert found is not None
        assert found.kind == kind


def test_a_lost_peer_is_kept_from_a_flood_of_other_lines() -> None:
    tail = Tail()
    for name in ELSEWHERE:
        tail.add("\n".join(lines(name)).encode())
    tail.add(b"step\n" * 10_000)
    kept = tail.lines()
    assert any("waiting for clients" in line for line in kept)
    assert any("timed out after 8000ms" in line for line in kept)
    assert any("reset by peer" in line for line in kept)


def test_every_message_is_put_to_the_test() -> None:
    tested = set(ELSEWHERE) | {argument[0] for mark in test_a_true_message.pytestmark for argument in mark.args[1]}  # type: ignore[attr-defined]
    assert {path.stem for path in MESSAGES.glob("*.txt")} == tested


def test_the_figures_of_an_out_of_memory_error() -> None:
    oom = find_oom(lines("cuda_oom_new"))
    assert oom is not None
    assert (oom.rank, oom.gpu, oom.phase) == (2, 2, "load")
    assert oom.requested_bytes == round(4.22 * GIB)
    assert oom.free_bytes == round(3.71 * GIB)
    assert oom.total_bytes == round(15.69 * GIB)
    assert oom.own_bytes == round(11.14 * GIB)
    assert oom.unallocated_bytes == round(771.43 * MIB)
    assert oom.wanted_bytes == oom.own_bytes + oom.requested_bytes
    old = find_oom(lines("cuda_oom_old"))
    assert old is not None
    assert (old.allocated_bytes, old.own_bytes, old.phase) == (round(8.77 * GIB), None, None)


@pytest.mark.parametrize(
    ("frame", "phase"),
    [
        ("    self.accelerator.backward(loss, **kwargs)", "backward"),
        ("    output = eval_loop = self.evaluation_loop(", "eval"),
        ("    self.optimizer.step()", "optimizer"),
        ("    loss = nn.functional.cross_entropy(source, target)", "loss"),
        ("    self._save_checkpoint(model, trial)", "save"),
    ],
)
def test_the_phase_is_read_from_the_traceback(frame: str, phase: str) -> None:
    text = ["Traceback (most recent call last):", "  line in training_step", frame, *lines("cuda_oom_old")]
    oom = find_oom(text)
    assert oom is not None
    assert oom.phase == phase


def test_a_failure_of_memory_counts_before_what_followed_from_it() -> None:
    both = [*lines("nccl_shm"), *lines("cuda_oom_old"), *lines("worker_sigkill")]
    found = diagnose(Evidence(exit_status=1, lines=both))
    assert found is not None
    assert found.kind == "cuda_oom"


def test_what_a_launcher_refuses_is_named() -> None:
    said = [
        "usage: torchrun [-h] [--nnodes NNODES]",
        "torchrun: error: argument --master-port: invalid int value: 'abc'",
    ]
    found = diagnose(Evidence(exit_status=2, lines=said))
    assert found is not None
    assert found.cause.endswith("with status 2: torchrun: error: argument --master-port: invalid int value: 'abc'")


def test_a_workers_error_counts_before_the_launchers_that_repeat_it() -> None:
    said = [
        "[rank1]: RuntimeError: don't know how to restore data location",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        "subprocess.CalledProcessError: Command '['torchrun', '--nnodes', '1']' returned non-zero exit status 1.",
    ]
    found = diagnose(Evidence(exit_status=1, lines=said))
    assert found is not None
    assert (
        found.cause == "the engine ended with status 1: [rank1]: RuntimeError: don't know how to restore data location"
    )
    alone = diagnose(Evidence(exit_status=1, lines=said[2:]))
    assert alone is not None
    assert "CalledProcessError" in alone.cause


def test_the_kernels_counter_tells_a_kill_for_memory_from_another() -> None:
    said = lines("worker_sigkill")
    kinds = [diagnose(Evidence(exit_status=1, lines=said, oom_kills=count)) for count in (1, 0, None)]
    assert [found.kind if found else None for found in kinds] == ["host_oom", "killed", "killed"]
    assert "no kill for memory" in kinds[1].cause  # type: ignore[union-attr]


def test_a_good_end_is_no_failure_and_a_signal_is_one() -> None:
    assert diagnose(Evidence(exit_status=0, lines=lines("nccl_shm"))) is None
    crashed = diagnose(Evidence(exit_status=-11, lines=[]))
    assert crashed is not None
    assert (crashed.kind, "SIGSEGV" in crashed.cause) == ("crashed", True)


def test_each_remedy_for_links_is_tried_once() -> None:
    tried: dict[str, str] = {}
    names = []
    while (found := remedy_for(lines("nccl_shm"), tried)) is not None:
        names += [name for name, _ in found.variables]
        tried |= dict(found.variables)
    assert names == ["NCCL_SHM_DISABLE", "NCCL_P2P_DISABLE"]
