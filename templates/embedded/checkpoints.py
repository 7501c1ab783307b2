"""Checkpoints of a run: the model as transformers and peft load it, and beside it what the optimizer remembers.

``checkpoint-N`` exists only when it is complete: it is written under another name, and renamed at the end. Weights
and step carry over to any number of processes, and the optimizer's states to any sharding but to or from DeepSpeed's.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

STATE, OPTIMIZER = "trainer_state.json", "optimizer.pt"  # the state is written last, by its Trainer's name
ZERO = ("zero1", "zero2", "zero3")


def checkpoints_in(output_dir):
    """The complete checkpoints of a folder, the oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    return sorted((path for path in found if (path / STATE).is_file()), key=lambda path: int(path.name[11:]))


def last_checkpoint(output_dir):
    """The newest complete checkpoint, or None."""
    found = checkpoints_in(output_dir)
    return str(found[-1]) if found else None


def form_of(run):
    """How the optimizer's states are written: DeepSpeed's own files, states by name, or as the optimizer has them."""
    if run.settings["parallelism"]["kind"] in ZERO:
        return run.settings["parallelism"]["kind"]
    return "by name" if run.arguments["optim"].startswith("adamw_torch") else "as it is"


def inner(optimizer):
    """The optimizer below accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def save_model(run, folder):
    """The weights, or the adapters alone, as ``from_pretrained`` reads them; gathered where they are sharded."""
    accelerator, is_adapter = run.accelerator, bool(run.settings["adapter"])
    if run.is_sharded_by_hand:
        how = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
        state = get_model_state_dict(run.model, options=how)
    else:
        state = accelerator.get_state_dict(run.model)
    if accelerator.is_main_process:
        accelerator.unwrap_model(run.model).save_pretrained(folder, state_dict=state)
    accelerator.wait_for_everyone()


def save_checkpoint(run):
    """``checkpoint-N`` in the output folder; older ones beyond the limit go."""
    accelerator, output = run.accelerator, Path(run.arguments["output_dir"])
    final, part = output / f"checkpoint-{run.step}", output / f"checkpoint-{run.step}.part"
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_model(run, part)
    save_optimizer(run, part)
    torch.save(random_state(run), part / f"random-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        facts = {"global_step": run.step, "max_steps": run.total, "tokens": run.tokens, "form": form_of(run)}
        facts |= {"effective_batch": run.order.size, "processes": accelerator.num_processes}
        (part / STATE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        limit = run.arguments["save_total_limit"]
        for old in checkpoints_in(output)[:-limit] if limit else ():
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def save_optimizer(run, folder):
    """The optimizer's states in the form that ``form_of`` names."""
    if form_of(run) in ZERO:
        run.model.save_checkpoint(str(folder / "deepspeed"), exclude_frozen_parameters=bool(run.settings["adapter"]))
        return
    if form_of(run) == "by name":
        how = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(run.model, inner(run.optimizer), options=how)
    else:
        state = inner(run.optimizer).state_dict()
    if run.accelerator.is_main_process:
        torch.save(state, folder / OPTIMIZER)


def restore_optimizer(run, checkpoint):
    """Step, tokens and the optimizer's states; states in another form are left behind, and that is said."""
    folder = Path(checkpoint)
    facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
    run.step, run.tokens = facts["global_step"], facts["tokens"]
    if facts["effective_batch"] != run.order.size:
        batch = f"{facts['effective_batch']} sequences, and this run has {run.order.size}"
        sys.exit(
            f"error: {checkpoint} was trained with an effective batch of {batch}: its samples cannot be counted on"
        )
    if facts["form"] != form_of(run):
        where = f"{checkpoint} has the optimizer's states in the form {facts['form']!r}"
        run.accelerator.print(f"warning: {where}, and this run needs {form_of(run)!r}: they begin anew", flush=True)
    elif form_of(run) in ZERO:
        run.model.load_checkpoint(str(folder / "deepspeed"), load_module_strict=False)
    else:
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        if form_of(run) == "by name":
            how = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(run.model, inner(run.optimizer), state, options=how)
        else:
            inner(run.optimizer).load_state_dict(state)


def random_state(run):
    """What dropout draws from in this process, and the scale of fp16's losses."""
    state = {"cpu": torch.get_rng_state()}
    if run.accelerator.scaler is not None:
        state["scaler"] = run.accelerator.scaler.state_dict()
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(run, checkpoint):
    """The same as when the checkpoint was written, where as many processes run."""
    path = Path(checkpoint or "-") / f"random-{run.accelerator.process_index}.pt"
    if not path.is_file():
        torch.manual_seed(run.arguments["seed"] + run.accelerator.process_index)
        return
    state = torch.load(path, weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "scaler" in state and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
