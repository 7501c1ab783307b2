"""What engines print and log about their progress."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from planner.run.progress import Tracker
from planner.units import GIB

# As LLaMA-Factory 0.9.5 writes it with include_num_input_tokens_seen and RECORD_VRAM=1.
LOGGED = {
    "current_steps": 5, "total_steps": 222, "loss": 1.5, "lr": 8.695652e-06, "epoch": 0.07, "percentage": 2.25,
    "elapsed_time": "0:00:05", "remaining_time": "0:04:00", "throughput": 1566.6, "total_tokens": 9000,
    "vram_allocated": 7.5, "vram_reserved": 8.25,
}  # fmt: skip


def test_a_line_of_the_trainers_log() -> None:
    tracker = Tracker()
    tracker.log_line(json.dumps(LOGGED), at=100.0)
    tracker.log_line(json.dumps(LOGGED | {"current_steps": 10, "loss": 1.25}), at=110.0)
    now = tracker.now
    assert (now.step, now.total_steps, now.loss, now.tokens_per_s) == (10, 222, 1.25, 1566.6)
    assert now.seconds_per_step == 2.0
    assert now.remaining_s == 424.0
    assert (now.allocated_bytes, now.reserved_bytes) == (int(7.5 * GIB), int(8.25 * GIB))
    assert now.losses == (1.5, 1.25)
    assert tracker.first_step == 5


def test_half_a_line_and_other_json_are_passed_by() -> None:
    tracker = Tracker()
    for text in ('{"current_steps": 5, "tot', "[1]", '{"a": 1}', "", "null"):
        assert tracker.log_line(text, at=0.0) is None
    assert tracker.now.step is None


def test_what_transformers_prints_as_strings() -> None:
    tracker = Tracker()
    tracker.output(b"Map: 100%|#####| 9/9 [00:00<00:00, 90it/s]\n  0%|  | 0/4 [00:00<?, ?it/s]\r", at=0.0)
    tracker.output(b"{'loss': '6.254', 'grad_norm': '0.97', 'learning_rate': '2e-05', 'epoch': '0.06'}\n", at=1.0)
    tracker.output(b" 25%|##5    | 1/4 [00:00<00:01,  2.9it/s]\r 50%|#####  | 2/4 [00:00<00:01,  2.9it/s]\r", at=2.0)
    now = tracker.now
    assert (now.loss, now.learning_rate, now.epoch) == (6.254, 2e-05, 0.06)
    assert (now.step, now.total_steps) == (2, 4)
    tracker.output(b"100%|#####| 3/3 [00:00<00:01,  2.9it/s]\n", at=3.0)  # an evaluation's bar counts no steps
    assert tracker.now.step == 2


def test_a_bar_that_ended_before_a_loss_in_the_same_gulp_is_not_the_runs() -> None:
    """Weights are loaded, a step is printed, and all of it is read at once: of 21 shards none is a step."""
    loading = b"Loading weights: 100%|##| 21/21 [00:00<00:00, 11008.67it/s]\n"
    tracker = Tracker()
    tracker.output(b"Loading weights:   0%|  | 0/21 [00:00<?, ?it/s]\r" + loading + b"{'loss': 6.23}\n", at=1.0)
    tracker.output(loading, at=2.0)  # another process's
    assert (tracker.now.step, tracker.now.total_steps, tracker.now.loss) == (None, None, 6.23)


def test_an_evaluations_bar_behind_the_runs_in_the_same_gulp_hides_no_step() -> None:
    tracker = Tracker()
    tracker.output(b"  0%|  | 0/8 [00:00<?, ?it/s]\r 25%|#| 2/8 [00:01<00:03, 2.0it/s]\r{'loss': 2.5}\n", at=1.0)
    tracker.output(b" 50%|##| 4/8 [00:02<00:02, 2.0it/s]\r{'loss': 2.0}\n100%|##| 3/3 [00:00<00:00, 9.0it/s]\r", at=3.0)
    assert (tracker.now.step, tracker.now.total_steps, tracker.first_step) == (4, 8, 4)


def test_the_log_corrects_a_bar_that_was_taken_for_the_runs() -> None:
    tracker = Tracker()
    tracker.output(
        b"{'loss': 2.5}\n  0%|  | 0/30 [00:00<?, ?it/s]\r{'loss': 2.5}\n 50%|#| 15/30 [0:01<0:01, 9it/s]\r", at=1.0
    )
    assert (tracker.now.step, tracker.now.total_steps) == (15, 30)
    tracker.log_line(json.dumps(LOGGED), at=2.0)
    assert (tracker.now.step, tracker.now.total_steps, tracker.first_step) == (5, 222, 5)


def test_printed_lines_do_not_count_beside_the_log() -> None:
    tracker = Tracker()
    tracker.output(b"{'loss': 1.5, 'learning_rate': 1e-5, 'epoch': 0.1}\n", at=0.0)
    tracker.log_line(json.dumps(LOGGED), at=1.0)
    tracker.output(b"{'loss': 1.5, 'learning_rate': 1e-5, 'epoch': 0.1}\n", at=2.0)
    assert tracker.now.losses == (1.5,)


def test_losses_that_are_no_number_are_counted_and_not_drawn() -> None:
    tracker = Tracker()
    for step in range(1, 5):
        loss = math.nan if step > 1 else 2.0
        tracker.log_line(json.dumps(LOGGED | {"current_steps": step, "loss": loss}), at=float(step))
    assert tracker.sick == 3
    assert tracker.now.losses == (2.0,)
    printed = Tracker()
    printed.output(b"{'loss': nan, 'grad_norm': nan, 'learning_rate': 1e-5, 'epoch': 0.1}\n", at=0.0)
    assert printed.sick == 1


def test_a_machine_without_a_gpu_measures_no_memory() -> None:
    tracker = Tracker()
    tracker.log_line(json.dumps(LOGGED | {"vram_allocated": 0.0, "vram_reserved": -0.0}), at=0.0)
    assert (tracker.now.allocated_bytes, tracker.now.reserved_bytes) == (None, None)


def test_memory_by_phase_is_the_most_of_each() -> None:
    tracker = Tracker()
    for step, size in enumerate((5, 9, 7), start=1):
        phases = {"backward": {"allocated_bytes": size * GIB, "reserved_bytes": 1}, "eval": {}}
        tracker.log_line(json.dumps(LOGGED | {"current_steps": step, "memory": phases}), at=float(step))
    assert tracker.now.phases == {"backward": 9 * GIB}


def test_the_pace_is_of_looks_not_of_lines() -> None:
    tracker = Tracker()
    for step, at in ((1, 10.0), (2, 10.0), (3, 10.0), (4, 12.0), (5, 12.0)):
        tracker.log_line(json.dumps(LOGGED | {"current_steps": step}), at=at)
    assert tracker.now.seconds_per_step == 1.0


def test_the_first_step_is_the_logs_where_the_bar_was_read_later() -> None:
    tracker = Tracker()
    tracker.now = replace(tracker.now, total_steps=6)
    tracker.output(b" 100%|####| 6/6 [00:00<00:00, 40.0it/s]\n", at=1.0)
    for step in (5, 6):
        tracker.log_line(json.dumps(LOGGED | {"current_steps": step, "total_steps": 6}), at=1.0)
    assert (tracker.first_step, tracker.now.step) == (5, 6)
