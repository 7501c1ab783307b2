"""Small programs on the symbolic autograd tape, whose live bytes are worked out by hand.

Every tensor here is ten elements of two bytes a token, 20 bytes, unless its size is said.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.memory.tape import (
    ACTIVATION,
    GRADIENT,
    PASS,
    TEMPORARY,
    Elems,
    Moment,
    Node,
    Param,
    Tape,
    Tensor,
    undominated,
)

TEN: Elems = (0, 10, 0)


def leaf(tape: Tape) -> tuple[Tensor, Node]:
    """A tensor whose gradient ends in a node that does nothing."""
    sink = Node(-1, (), (), (), (), 1)
    tensor = tape.new(TEN, 2)
    tensor.node = sink
    return tensor, sink


def kernel(tape: Tape, x: Tensor, *, saves: bool) -> Tensor:
    """A pointwise kernel with a fresh output and a fresh gradient, which may save its input."""
    out = tape.new(x.elems, x.itemsize)
    tape.link(out, (x,), ((x.elems, x.itemsize),), saved=(x if saves else None,))
    return out


def peak_token(tape: Tape) -> int:
    return max(moment.token for moment in tape.meter.close())


class TestLifetimes:
    def test_a_tensor_lives_from_its_birth_to_its_last_handle(self) -> None:
        tape = Tape()
        tensor = tape.new((3, 10, 2), 4)
        assert tape.meter.now() == Moment(const=12, token=40, square=8)
        del tensor
        assert tape.meter.now() == Moment(0, 0, 0)

    def test_a_view_and_a_detached_handle_keep_the_bytes_and_add_none(self) -> None:
        tape = Tape()
        x, _ = leaf(tape)
        seen, bare = tape.view(x), tape.detached(x)
        assert tape.meter.token == 20
        assert seen.needs_grad
        assert not bare.needs_grad
        del x, seen
        assert tape.meter.token == 20
        del bare
        assert tape.meter.token == 0

    def test_every_local_maximum_is_remembered_once(self) -> None:
        tape = Tape()
        tape.meter.restart()
        a, b = tape.new((100, 0, 0), 1), tape.new(TEN, 2)
        del b
        c = tape.new((0, 50, 0), 1)
        del a, c
        assert tape.meter.close() == (Moment(100, 50, 0),)  # (100, 20) is below it, (0, 0) too

    def test_kinds_are_booked_apart(self) -> None:
        tape = Tape()
        held = [tape.new((5, 0, 0), 2, kind) for kind in (ACTIVATION, GRADIENT, TEMPORARY)]
        assert tape.meter.now() == Moment(30, 0, 0, gradient=10, temporary=10)
        held[2].storage.become(GRADIENT)
        assert tape.meter.now() == Moment(30, 0, 0, gradient=20, temporary=0)
        held.clear()
        assert tape.meter.now() == Moment(0, 0, 0)


class TestSaved:
    def test_a_node_keeps_what_it_saved_and_nothing_else(self) -> None:
        tape = Tape()
        x, _sink = leaf(tape)
        y = kernel(tape, x, saves=True)
        z = kernel(tape, y, saves=False)
        del x, y
        assert tape.meter.token == 40  # x, which the first kernel saved, and z; y is gone
        assert z.needs_grad

    def test_nothing_is_saved_while_nothing_is_recorded(self) -> None:
        tape = Tape()
        tape.recording = False
        x, _sink = leaf(tape)
        y = kernel(tape, x, saves=True)
        del x
        assert tape.meter.token == 20
        assert not y.needs_grad

    def test_nothing_is_saved_where_no_input_needs_a_gradient(self) -> None:
        tape = Tape()
        x = tape.new(TEN, 2)
        y = kernel(tape, x, saves=True)
        del x
        assert tape.meter.token == 20
        assert not tape.nodes
        assert not y.needs_grad

    def test_saved_tensors_are_released_after_their_node_ran(self) -> None:
        """x and y are saved by two kernels, z is their result and held by the caller throughout.

        x + y + z + dz = 80 before; + dy while the upper kernel runs = 100; - y - dz = 60; + dx = 80; z and dx left.
        """
        tape = Tape()
        x, sink = leaf(tape)
        y = kernel(tape, x, saves=True)
        z = kernel(tape, y, saves=True)
        del x, y
        root = tape.detached(z)
        root.node, root.slot = z.node, z.slot
        del z
        tape.meter.restart()
        holder = [tape.new(TEN, 2)]
        backward_freeing(tape, root, holder)
        assert [m.token for m in tape.meter.peaks] == [100, 80]
        assert tape.meter.token == 40
        sink.grads = None
        assert tape.meter.token == 20

    def test_workspace_lives_for_one_node(self) -> None:
        tape = Tape()
        x, sink = leaf(tape)
        out = tape.new(TEN, 2)
        tape.link(out, (x,), ((TEN, 2),), temps=(((7, 0, 0), 1, TEMPORARY), ((0, 5, 0), 1, ACTIVATION)))
        del x
        tape.meter.restart()
        tape.backward(out, tape.new(TEN, 2))
        (moment,) = tape.meter.close()
        assert moment == Moment(const=7, token=20 + 20 + 5 + 20, square=0, temporary=7)
        sink.grads = None


def backward_freeing(tape: Tape, root: Tensor, holder: list[Tensor]) -> None:
    """Backward whose incoming gradient nobody else holds."""
    tape.backward(root, holder.pop())


class TestAccumulation:
    def run(self, *, second_pass: bool) -> tuple[int, int]:
        """y = f(x) + g(x): two gradients meet at x; returns (peak, left over) bytes per token.

        ``second_pass``: g hands its gradient on unchanged, so the storage is still read elsewhere.
        """
        tape = Tape()
        x, sink = leaf(tape)
        left = kernel(tape, x, saves=False)
        right = tape.view(x)
        tape.link(right, (x,), (PASS if second_pass else (TEN, 2),))
        out = tape.new(TEN, 2)
        tape.link(out, (left, right), (PASS, PASS))
        del left, right, x
        grads = [tape.new(TEN, 2)]
        root = tape.detached(out)
        root.node = out.node
        del out
        tape.meter.restart()
        backward_freeing(tape, root, grads)
        del root
        peak = peak_token(tape)
        sink.grads = None
        return peak, tape.meter.token

    def test_a_gradient_that_nobody_else_reads_is_added_in_place(self) -> None:
        """root (20), d (20), then d2 (20) from the right branch, d1 (20) from the left; d dies before their sum."""
        assert self.run(second_pass=False) == (80, 0)

    def test_the_first_gradient_to_arrive_decides(self) -> None:
        """The passed gradient is d itself, the left branch's until it ran: 20 root + d + d1, summed in place."""
        assert self.run(second_pass=True) == (60, 0)

    def test_a_shared_gradient_gets_a_sum_of_its_own(self) -> None:
        """A holder outside keeps the first gradient alive: root 20, d 20 (held), d1 20, sum 20."""
        tape = Tape()
        x, sink = leaf(tape)
        left = kernel(tape, x, saves=False)
        right = tape.view(x)
        tape.link(right, (x,), (PASS,))
        out = tape.new(TEN, 2)
        tape.link(out, (left, right), (PASS, PASS))
        del left, right, x
        held = tape.new(TEN, 2)
        tape.meter.restart()
        tape.backward(out, held)
        assert peak_token(tape) == 80
        sink.grads = None
        assert tape.meter.token == 40  # out and held, this function's own
        del out, held

    def test_a_sum_takes_the_wider_type(self) -> None:
        tape = Tape()
        x, sink = leaf(tape)
        narrow, wide = tape.new(TEN, 2), tape.new(TEN, 4)
        tape.link(narrow, (x,), ((TEN, 2),))
        tape.link(wide, (x,), (PASS,))
        del x
        held = tape.new(TEN, 4)
        root = tape.new(TEN, 4)
        tape.link(root, (narrow, wide), ((TEN, 2), PASS))
        del narrow, wide
        tape.backward(root, held)
        assert sink.grads is not None
        total = sink.grads[0]
        assert total is not None
        assert total.storage.bytes == (0, 40, 0)
        assert total.storage is not held.storage


class TestWeights:
    def weighted(self, tape: Tape, param: Param) -> None:
        x, sink = leaf(tape)
        out = tape.new(TEN, 2)
        tape.link(out, (x, param), ((TEN, 2), ((param.count, 0, 0), param.itemsize)), saved=(x,))
        del x
        tape.backward(out, tape.new(TEN, 2))
        sink.grads = None

    def test_the_gradient_of_a_weight_stays_and_is_booked_as_gradient(self) -> None:
        tape = Tape()
        param = Param(1000, 2, trained=True)
        self.weighted(tape, param)
        assert tape.meter.now() == Moment(const=2000, token=0, square=0, gradient=2000)
        assert param.grad is not None

    def test_a_second_gradient_is_added_to_the_first(self) -> None:
        tape = Tape()
        param = Param(1000, 2, trained=True)
        self.weighted(tape, param)
        self.weighted(tape, param)
        assert tape.meter.now() == Moment(const=2000, token=0, square=0, gradient=2000)

    def test_a_gradient_that_a_sharding_engine_takes_away_is_no_gradient_part(self) -> None:
        tape = Tape()
        param = Param(1000, 2, trained=True, keeps_grad=False)
        tape.meter.restart()
        self.weighted(tape, param)
        assert tape.meter.now() == Moment(0, 0, 0)
        assert param.grad is None
        assert max(m.const for m in tape.meter.peaks) == 2000
        assert max(m.gradient for m in tape.meter.peaks) == 0

    def test_a_frozen_weight_has_no_gradient(self) -> None:
        tape = Tape()
        param = Param(1000, 2, trained=False)
        tape.meter.restart()
        self.weighted(tape, param)
        assert param.grad is None
        assert max(m.const for m in tape.meter.close()) == 0

    def test_a_cast_weight_hands_its_gradient_on_as_fp32(self) -> None:
        """Autocast's copy is a graph node of its own: its 16-bit gradient lives beside the fp32 one, then goes."""
        tape = Tape()
        param = Param(1000, 4, trained=True)
        copy = tape.new((1000, 0, 0), 2, TEMPORARY)
        tape.link(copy, (param,), (((1000, 0, 0), 4),))
        out = tape.new(TEN, 2)
        tape.link(out, (copy,), (((1000, 0, 0), 2),))
        del copy
        tape.meter.restart()
        tape.backward(out, tape.new(TEN, 2))
        assert max(m.const for m in tape.meter.peaks) == 2000 + 4000
        assert tape.meter.now() == Moment(const=4000, token=20, square=0, gradient=4000)


class TestOrder:
    def test_later_operations_run_backward_first(self) -> None:
        """The upper kernel's saved tensor is gone before the lower one's gradient is made: 3 tensors, not 4."""
        tape = Tape()
        x, sink = leaf(tape)
        y = kernel(tape, x, saves=False)
        z = kernel(tape, y, saves=True)
        del x, y
        grads = [tape.new(TEN, 2)]
        tape.meter.restart()
        backward_freeing(tape, z, grads)
        assert [m.token for m in tape.meter.peaks] == [80, 60]  # z 20; y, dz, dy; then dy, dx
        sink.grads = None

    def test_a_branch_without_gradient_is_skipped(self) -> None:
        tape = Tape()
        x, sink = leaf(tape)
        unused = kernel(tape, x, saves=True)
        used = kernel(tape, x, saves=False)
        del x
        tape.backward(used, tape.new(TEN, 2))
        assert tape.meter.token == 80  # unused, used, dx, and x, which the skipped node saved
        sink.grads = None
        del unused
        assert tape.meter.token == 20


moments = st.builds(Moment, *[st.integers(0, 30)] * 3)


class TestUndominated:
    def test_only_what_can_be_largest_somewhere_stays(self) -> None:
        few = Moment(9, 1, 0), Moment(1, 9, 0), Moment(8, 1, 0), Moment(1, 9, 0)
        assert undominated(few) == (Moment(9, 1, 0), Moment(1, 9, 0))

    @given(st.lists(moments, max_size=12), st.integers(0, 50), st.integers(1, 50))
    def test_the_maximum_is_the_same_for_every_size(self, given_moments: list[Moment], batch: int, length: int) -> None:
        tokens, squares = batch * length, batch * length * length
        kept = undominated(given_moments)
        assert set(kept) <= set(given_moments)
        expected = max((m.at(tokens, squares) for m in given_moments), default=0)
        assert max((m.at(tokens, squares) for m in kept), default=0) == expected

    @given(st.lists(moments, max_size=12))
    def test_what_is_left_does_not_dominate_itself(self, given_moments: list[Moment]) -> None:
        kept = undominated(given_moments)
        for one in kept:
            others = [m for m in kept if m is not one]
            assert not any(all(a >= b for a, b in zip(other[:3], one[:3], strict=True)) for other in others)

    def test_moments_add_and_subtract_part_by_part(self) -> None:
        a, b = Moment(5, 4, 3, 2, 1), Moment(1, 1, 1, 1, 1)
        assert a.minus(b) == Moment(4, 3, 2, 1, 0)
        assert a.minus(b).plus(b) == a
        assert a.at(10, 100) == 5 + 40 + 300
