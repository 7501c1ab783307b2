"""Room for checkpoints and for a model that must be fetched. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from planner.run.checks.records import Need, Surroundings, Volume, failed, passed, warned
from planner.run.records import Check
from planner.units import show_gib


def disk(need: Need, here: Surroundings) -> Iterator[Check]:
    """Checkpoints where they go, the model where the hub's cache lies; one file system gets both."""
    output, cache = here.output_volume, here.cache_volume
    fetched = need.disk.model_bytes if _fetches(here) else 0
    shares = bool(output and cache and output.device == cache.device)
    if output is None:
        yield warned("disk", "how much room there is for checkpoints is not known")
    else:
        yield _checkpoints(need, here, output, fetched if shares else 0)
    if fetched and cache is not None and not shares:
        yield _cache(cache, fetched)


def _fetches(here: Surroundings) -> bool:
    """True where the model itself is going to be downloaded."""
    return any(model.role == "model" and model.folder is None and model.reach for model in here.models)


def checkpoint_bytes(need: Need, whole: int) -> int:
    """Bytes still to be written: a new checkpoint comes before the oldest goes, and those that are there count."""
    kept = 1 if need.limit is None else max(0, need.limit + 1 - whole)
    return kept * need.disk.checkpoint_bytes + need.disk.weights_bytes + need.disk.swapped_bytes


def _checkpoints(need: Need, here: Surroundings, volume: Volume, fetched: int) -> Check:
    required = checkpoint_bytes(need, here.output.whole) + fetched
    what = "checkpoints" + (" and the model's download" if fetched else "")
    sentence = f"{show_gib(volume.free_bytes)} free, {what} take {show_gib(required)}"
    if volume.free_bytes < required:
        return failed("disk", sentence, "make room, or keep fewer checkpoints (save_total_limit)")
    if need.limit is None:
        each = show_gib(need.disk.checkpoint_bytes)
        return warned("disk", f"{sentence}; none is ever deleted, each takes {each}", "set save_total_limit, to 3 say")
    return passed("disk", sentence)


def _cache(volume: Volume, fetched: int) -> Check:
    sentence = f"{show_gib(volume.free_bytes)} free in {volume.path}, the model's download takes {show_gib(fetched)}"
    if volume.free_bytes < fetched:
        return failed("model cache", sentence, "make room, or set HF_HOME to a place with more of it")
    return passed("model cache", sentence)
