"""PyTorch's caching allocator, replayed: a log of allocations and frees -> what the process reserves on the card.

Source of the policy: c10/cuda/CUDACachingAllocator.cpp of torch 2.x (DeviceCachingAllocator::malloc, get_free_block,
should_split, alloc_found_block, free_block, try_merge_blocks, release_cached_blocks; for expandable segments
find_expandable_block, map_block, unmap_block). As there: requests are rounded to 512 B; those up to 1 MiB are cut from
segments of 2 MiB, those under 10 MiB from segments of 20 MiB, larger ones get a segment rounded to 2 MiB; the smallest
free block of the same stream that is large enough is taken, of equal ones the lowest; what is left over becomes a block
of its own (from 512 B in small segments, above 1 MiB in large ones, else it stays attached and counts as allocated);
freed blocks join free neighbours. Where the card is full, whole free segments go back and the request is tried again.

Left out: what PYTORCH_CUDA_ALLOC_CONF can ask for beside expandable segments (roundup_power2_divisions,
max_split_size_mb, garbage_collection_threshold), private pools of CUDA graphs, and ``record_stream``: a block is free
when the log says so. Segments get growing addresses, which matters only between free blocks of one size.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from planner.units import MIB

Event = tuple[str, Hashable, int, int]  # "alloc" or "free", the storage's key, bytes (of an alloc), stream

MIN_BLOCK_BYTES = 512
SMALL_BYTES = 1 * MIB  # the largest request that small segments serve
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
MIN_LARGE_BYTES = 10 * MIB  # from here on a segment of its own
ROUND_LARGE_BYTES = 2 * MIB
ADDRESS_SPACE_BYTES = 1 << 50  # of one expandable segment where no capacity is known


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemory:
    """The request that found no room even after every whole free segment had gone back."""

    requested_bytes: int
    event_index: int
    live_bytes: int
    reserved_bytes: int

    @property
    def stranded_bytes(self) -> int:
        """Free bytes that the allocator holds between live blocks and cannot give back."""
        return self.reserved_bytes - self.live_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What one log did to the allocator; peaks as torch.cuda.max_memory_allocated and max_memory_reserved tell them.

    ``requested_peak_bytes`` counts the bytes asked for, ``allocated_peak_bytes`` the blocks they live in;
    ``live_bytes`` and ``reserved_bytes`` are those of the end (of the last event before ``out_of_memory``, if any).
    """

    requested_peak_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    live_bytes: int
    reserved_bytes: int
    live_at_reserved_peak_bytes: int
    releases: int  # times that the card was full and free segments went back
    out_of_memory: OutOfMemory | None

    @property
    def cached_at_peak_bytes(self) -> int:
        """Bytes held without a tensor when most was reserved: cache and fragments."""
        return self.reserved_peak_bytes - self.live_at_reserved_peak_bytes


def replay(events: Iterable[Event], *, capacity_bytes: int | None = None, expandable_segments: bool = False) -> Replay:
    """Run a log through the allocator on a card that gives it ``capacity_bytes`` (None: without end).

    Stops at the first request that finds no room. Raises ValueError for a log that no run can have written: a key that
    is allocated twice, freed without being alive, or a negative size.
    """
    allocator = Allocator(capacity_bytes=capacity_bytes, expandable_segments=expandable_segments)
    blocks: dict[Hashable, Block | None] = {}
    for index, (kind, key, nbytes, stream) in enumerate(events):
        if kind == "free":
            if key not in blocks:
                raise ValueError(f"event {index} frees {key!r}, which is not alive")
            allocator.free(blocks.pop(key))
            continue
        if kind != "alloc" or nbytes < 0 or key in blocks:
            raise ValueError(f"event {index} is no allocation: {kind} of {nbytes} bytes as {key!r}")
        block = allocator.malloc(nbytes, stream)
        if block is None and nbytes:
            return allocator.result(
                OutOfMemory(
                    requested_bytes=nbytes,
                    event_index=index,
                    live_bytes=allocator.live_bytes,
                    reserved_bytes=allocator.reserved_bytes,
                )
            )
        blocks[key] = block
    return allocator.result()


def least_capacity(events: Iterable[Event], *, expandable_segments: bool = False, step_bytes: int = 2 * MIB) -> int:
    """A capacity at which the log runs although it does not ``step_bytes`` below it: what it needs under pressure.

    The allocator is not monotonous: a card a little larger can fail where a smaller one runs, because it gives blocks
    back later. So this is one such boundary, found by halving between the live peak and the free-running reservation.
    """
    log = list(events)
    free_running = replay(log, expandable_segments=expandable_segments)
    low, high = free_running.requested_peak_bytes // step_bytes, -(-free_running.reserved_peak_bytes // step_bytes)
    while high - low > 1:
        middle = (low + high) // 2
        tried = replay(log, capacity_bytes=middle * step_bytes, expandable_segments=expandable_segments)
        low, high = (low, middle) if tried.out_of_memory is None else (middle, high)
    return high * step_bytes


class Block:
    """A stretch of one segment: allocated, free, or (in an expandable segment) without memory behind it."""

    __slots__ = ("address", "allocated", "mapped", "next", "pool", "prev", "requested", "segment", "size", "stream")

    def __init__(self, pool: Pool, stream: int, address: int, size: int, segment: Segment | None = None) -> None:
        self.pool, self.stream, self.address, self.size, self.segment = pool, stream, address, size, segment
        self.allocated, self.mapped, self.requested = False, True, 0
        self.prev: Block | None = None
        self.next: Block | None = None

    def splice(self, before: Block | None, after: Block | None) -> None:
        """Stand between two neighbours."""
        self.prev, self.next = before, after
        if before is not None:
            before.next = self
        if after is not None:
            after.prev = self

    @property
    def whole(self) -> bool:
        """A segment of its own."""
        return self.prev is None and self.next is None

    @property
    def growable(self) -> int:
        """Its size with the unmapped stretch behind it, which is what best fit compares."""
        behind = self.next
        return self.size + (behind.size if behind is not None and not behind.mapped else 0)


@dataclass(frozen=True, slots=True)
class Segment:
    """A virtual address range that memory is mapped into, ``page_bytes`` at a time."""

    address: int
    page_bytes: int


class Pool:
    """The free blocks of one size class, ordered by size and address, and the unmapped ones by address, per stream."""

    __slots__ = ("free", "is_small", "unmapped")

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self.free: dict[int, list[tuple[int, int, Block]]] = {}
        self.unmapped: dict[int, list[tuple[int, Block]]] = {}

    @property
    def segment_bytes(self) -> int:
        """A shared segment's size, and an expandable one's page."""
        return SMALL_SEGMENT_BYTES if self.is_small else LARGE_SEGMENT_BYTES

    def insert(self, block: Block) -> None:
        """Offer a block: for allocation where it has memory, else for mapping."""
        if block.mapped:
            insort(self.free.setdefault(block.stream, []), (block.size, block.address, block))
        else:
            insort(self.unmapped.setdefault(block.stream, []), (block.address, block))

    def remove(self, block: Block) -> None:
        """Take a block out of its list."""
        if block.mapped:
            free = self.free[block.stream]
            del free[bisect_left(free, (block.size, block.address))]
        else:
            unmapped = self.unmapped[block.stream]
            del unmapped[bisect_left(unmapped, (block.address,))]

    def best_fit(self, stream: int, size: int, *, expandable: bool) -> Block | None:
        """The smallest free block of ``stream`` with ``size`` bytes, taken out; among expandable ones by reach."""
        free = self.free.get(stream, [])
        place = bisect_left(free, (size,))
        if place == len(free):
            return None
        if expandable:
            while place + 1 < len(free) and free[place + 1][2].growable < free[place][2].growable:
                place += 1
        return free.pop(place)[2]


class Allocator:
    """One device's caching allocator."""

    def __init__(self, *, capacity_bytes: int | None = None, expandable_segments: bool = False) -> None:
        self.capacity, self.expandable = capacity_bytes, expandable_segments
        self.small, self.large = Pool(is_small=True), Pool(is_small=False)
        self.live_bytes = self.reserved_bytes = self.releases = 0
        self._requested = self._requested_peak = self._live_peak = 0
        self._reserved_peak = self._live_then = 0
        self._next_address = ROUND_LARGE_BYTES

    def result(self, failure: OutOfMemory | None = None) -> Replay:
        """The figures so far."""
        return Replay(
            requested_peak_bytes=self._requested_peak,
            allocated_peak_bytes=self._live_peak,
            reserved_peak_bytes=self._reserved_peak,
            live_bytes=self.live_bytes,
            reserved_bytes=self.reserved_bytes,
            live_at_reserved_peak_bytes=self._live_then,
            releases=self.releases,
            out_of_memory=failure,
        )

    def malloc(self, nbytes: int, stream: int) -> Block | None:
        """A block for ``nbytes``; None where there is no room, and for no bytes at all."""
        if not nbytes:
            return None
        size = -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        pool = self.small if size <= SMALL_BYTES else self.large
        block = pool.best_fit(stream, size, expandable=self.expandable) or self._new_block(pool, stream, size)
        if block is None:
            self.releases += 1
            self._release(self.large)
            self._release(self.small)
            block = self._new_block(pool, stream, size)
        if block is not None:
            self._hand_out(block, size, nbytes)
        return block

    def free(self, block: Block | None) -> None:
        """The tensor is gone: its block joins its free neighbours and waits for the next request."""
        if block is None:
            return
        block.allocated = False
        self.live_bytes -= block.size
        self._requested -= block.requested
        _merge(block)
        block.pool.insert(block)

    def _hand_out(self, block: Block, size: int, nbytes: int) -> None:
        left = block.size - size
        if left >= MIN_BLOCK_BYTES if block.pool.is_small or self.expandable else left > SMALL_BYTES:
            rest = Block(block.pool, block.stream, block.address + size, left, block.segment)
            rest.splice(block, block.next)
            block.size = size
            block.pool.insert(rest)
        block.allocated, block.requested = True, nbytes
        self.live_bytes += block.size
        self._requested += nbytes
        self._live_peak = max(self._live_peak, self.live_bytes)
        self._requested_peak = max(self._requested_peak, self._requested)
        if self.reserved_bytes > self._reserved_peak or (
            self.reserved_bytes == self._reserved_peak and self.live_bytes > self._live_then
        ):
            self._reserved_peak, self._live_then = self.reserved_bytes, self.live_bytes

    # -- segments -------------------------------------------------------------------------------------

    def _new_block(self, pool: Pool, stream: int, size: int) -> Block | None:
        """A free block of a new or grown segment, in no list; None where the card has no room."""
        if self.expandable:
            return self._grow(pool, stream, size)
        if pool.is_small or size < MIN_LARGE_BYTES:
            whole = pool.segment_bytes
        else:
            whole = -(-size // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES
        if not self._has_room(whole):
            return None
        self.reserved_bytes += whole
        return Block(pool, stream, self._address(whole), whole)

    def _has_room(self, size: int) -> bool:
        return self.capacity is None or self.reserved_bytes + size <= self.capacity

    def _address(self, size: int) -> int:
        address = self._next_address
        self._next_address += -(-size // LARGE_SEGMENT_BYTES) * LARGE_SEGMENT_BYTES
        return address

    def _release(self, pool: Pool) -> None:
        """Give back whole free segments, and of expandable ones the pages without a tensor."""
        blocks = [block for free in pool.free.values() for _, _, block in free]
        for block in blocks:
            if block.segment is not None:
                self._unmap(block, block.segment)
            elif block.whole:
                pool.remove(block)
                self.reserved_bytes -= block.size

    # -- expandable segments --------------------------------------------------------------------------

    def _grow(self, pool: Pool, stream: int, size: int) -> Block | None:
        """Map memory behind the lowest stretch that can reach ``size``; None where the card has no more."""
        block = self._candidate(pool, stream, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            behind = block.next
            assert behind is not None  # a candidate reaches ``size``  # noqa: S101
            if not self._map(behind, min(size - block.size, behind.size)):
                return None
            block = behind
        pool.remove(block)
        return block

    def _candidate(self, pool: Pool, stream: int, size: int) -> Block:
        """The lowest run of free and unmapped stretches with ``size`` bytes; a new segment where there is none."""
        for _, unmapped in pool.unmapped.get(stream, []):
            before = unmapped.prev
            first = before if before is not None and not before.allocated else unmapped
            if _reach(first, size) >= size:
                return first
        page = pool.segment_bytes
        wanted = ADDRESS_SPACE_BYTES if self.capacity is None else self.capacity + self.capacity // 8
        space = max(-(-wanted // page), -(-size // page) + 1) * page
        address = self._address(space)
        block = Block(pool, stream, address, space, Segment(address, page))
        block.mapped = False
        pool.insert(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the first ``size`` bytes (whole pages) of an unmapped block; it becomes free."""
        page, pool = block.pool.segment_bytes, block.pool
        mapped = -(-size // page) * page
        if not self._has_room(mapped):
            return False
        pool.remove(block)
        block.mapped = True
        if mapped < block.size:
            rest = Block(pool, block.stream, block.address + mapped, block.size - mapped, block.segment)
            rest.mapped = False
            rest.splice(block, block.next)
            pool.insert(rest)
            block.size = mapped
        _merge(block)
        pool.insert(block)
        self.reserved_bytes += mapped
        return True

    def _unmap(self, block: Block, segment: Segment) -> None:
        """Take the memory from the whole pages of a free block; what lies beside them stays a free block."""
        page, pool = segment.page_bytes, block.pool
        begin = segment.address + -(-(block.address - segment.address) // page) * page
        end = segment.address + (block.address + block.size - segment.address) // page * page
        if begin >= end:
            return
        pool.remove(block)
        bounds = (block.address, begin, end, block.address + block.size)
        for start, stop in list(pairwise(bounds))[::2]:
            if stop > start:
                rest = Block(pool, block.stream, start, stop - start, segment)
                rest.splice(*((block.prev, block) if start < begin else (block, block.next)))
                pool.insert(rest)
        block.address, block.size, block.mapped = begin, end - begin, False
        _merge(block)
        if not block.whole:  # a segment without any memory is given up
            pool.insert(block)
        self.reserved_bytes -= end - begin


def _merge(block: Block) -> None:
    """Swallow neighbours in the same state (free with memory, or without)."""
    for other in (block.prev, block.next):
        if other is None or other.allocated or other.mapped != block.mapped:
            continue
        other.pool.remove(other)
        block.size += other.size
        if other is block.prev:
            block.address = other.address
            block.splice(other.prev, block.next)
        else:
            block.splice(block.prev, other.next)


def _reach(block: Block | None, size: int) -> int:
    """Bytes of free and unmapped stretches from ``block`` on, up to ``size``."""
    reach = 0
    while block is not None and reach < size and not block.allocated:
        reach += block.size
        block = block.next
    return reach
