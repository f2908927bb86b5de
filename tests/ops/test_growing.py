"""Tokens that grow in place, held to torch.cat, and the promise that none of them is written over."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from attnopt.mechanisms.shared.states import filled_bytes, measured_bytes, select_rows, with_room
from attnopt.ops.growing import Tokens


def new(count: int, start: int = 0, batch: int = 2) -> torch.Tensor:
    """(batch, 3, count, 4), all different."""
    return torch.arange(batch * 3 * count * 4, dtype=torch.float64).view(batch, 3, count, 4) + 1000 * start


def grown(*sizes: int) -> tuple[Tokens, torch.Tensor]:
    """Tokens appended in pieces of these sizes, and the same joined by torch.cat."""
    pieces = [new(size, i) for i, size in enumerate(sizes)]
    tokens = Tokens(pieces[0].clone())
    for piece in pieces[1:]:
        tokens = tokens.append(piece)
    return tokens, torch.cat(pieces, 2)


@pytest.mark.parametrize("sizes", [[5], [1] * 40, [5, 1, 1, 30, 2], [0, 3, 1], [64, 1], [4, 4, 1]])
def test_it_holds_what_cat_gives_in_less_than_twice_the_memory(sizes: list[int]) -> None:
    tokens, expected = grown(*sizes)
    assert torch.equal(tokens.tensor, expected)
    assert tokens.count <= tokens.capacity <= max(2 * tokens.count - 1, 1)
    assert measured_bytes([tokens]) == expected[:, :, :1].nbytes * tokens.capacity
    assert filled_bytes([tokens]) == expected.nbytes


def test_a_prefill_takes_no_more_than_its_tokens_and_doubling_copies_seldom() -> None:
    tokens, _ = grown(100)
    assert tokens.capacity == 100
    places = set()
    for i in range(300):
        tokens = tokens.append(new(1, i))
        places.add(tokens.tensor.data_ptr())
    assert len(places) == 2
    assert tokens.capacity == 400


def test_what_continues_one_state_twice_sees_nothing_of_the_other() -> None:
    start, expected = grown(5, 1)
    left, right = start.append(new(1, 7)), start.append(new(2, 8))
    left, third = left.append(new(1, 9)), start.append(new(1, 10))
    right = right.append(new(30, 11))
    assert torch.equal(start.tensor, expected)
    assert torch.equal(left.tensor, torch.cat([expected, new(1, 7), new(1, 9)], 2))
    assert torch.equal(right.tensor, torch.cat([expected, new(2, 8), new(30, 11)], 2))
    assert torch.equal(third.tensor, torch.cat([expected, new(1, 10)], 2))
    assert left.tensor.data_ptr() == start.tensor.data_ptr()
    assert len({t.tensor.data_ptr() for t in (left, right, third)}) == 3


def test_a_window_slides_in_twice_its_memory_and_is_copied_once_in_as_many_steps() -> None:
    window, expected, places, before = Tokens(new(8)), new(8), set(), []
    for i in range(100):
        before.append((window, expected))
        window, expected = window.append(new(1, i)).last(8), torch.cat([expected, new(1, i)], 2)[:, :, -8:]
        assert torch.equal(window.tensor, expected)
        assert window.capacity == 16
        places.add(window._memory.data.data_ptr())
    assert len(places) <= 100 / 8 + 1
    for older, tokens in before:
        assert torch.equal(older.tensor, tokens)
        assert torch.equal(older.append(new(1, 500)).last(8).tensor, torch.cat([tokens, new(1, 500)], 2)[:, :, -8:])
    assert torch.equal(window.tensor, expected)


@pytest.mark.parametrize(("count", "capacity"), [(8, 9), (5, 9), (4, 4), (0, 0), (99, 9)])
def test_the_last_tokens_take_memory_of_their_own_where_the_old_is_too_large(count: int, capacity: int) -> None:
    tokens, expected = grown(4, 5)
    last = tokens.last(count)
    assert torch.equal(last.tensor, expected[:, :, max(9 - count, 0) :])
    assert last.capacity == capacity
    index = torch.tensor([1, 0, 1])
    assert torch.equal(last.select(index).tensor, last.tensor[index])
    assert torch.equal(last.with_room().append(new(2)).tensor, torch.cat([last.tensor, new(2)], 2))


def test_a_large_window_slides_in_a_quarter_more_memory() -> None:
    window = Tokens(new(100)).last(100)
    for i in range(200):
        window = window.append(new(1, i)).last(100)
    assert window.capacity == 125


def test_first_tokens_stay_and_those_between_are_hidden() -> None:
    tokens, expected, before = Tokens(new(5), first=3), new(5), []
    for i in range(60):
        before.append((tokens, expected))
        tokens, expected = tokens.append(new(1, i)), torch.cat([expected, new(1, i)], 2)
        mask = tokens.hidden(8)
        shown = torch.ones(tokens.stretch.shape[2], dtype=torch.bool) if mask is None else mask == 0
        read = expected if expected.shape[2] <= 11 else torch.cat([expected[:, :, :3], expected[:, :, -8:]], 2)
        assert torch.equal(tokens.stretch[:, :, shown], read)
        tokens = tokens.last(7)
        assert torch.equal(tokens.pinned, expected[:, :, :3])
        assert torch.equal(tokens.tensor, expected[:, :, -7:])
        assert filled_bytes([tokens]) == expected[:, :, :1].nbytes * min(10, expected.shape[2])
        assert tokens.capacity <= 2 * 11
        for same in (
            copy.deepcopy(tokens),
            tokens.with_room(),
            tokens.select(torch.arange(2)),
            tree_map(lambda t: t, [tokens])[0],
        ):
            assert torch.equal(same.append(new(1, 99)).pinned, expected[:, :, :3])
            assert torch.equal(same.append(new(1, 99)).tensor[:, :, :-1], expected[:, :, -7:])
    for older, tokens_then in before:
        again = older.append(new(1, 500))
        assert torch.equal(again.pinned, tokens_then[:, :, :3])
        assert torch.equal(again.tensor, torch.cat([tokens_then[:, :, -older.count :], new(1, 500)], 2))
        mask = again.hidden(4)
        shown = torch.ones(again.stretch.shape[2], dtype=torch.bool) if mask is None else mask == 0
        assert torch.equal(again.stretch[:, :, shown][:, :, -4:], again.tensor[:, :, -4:])


def test_what_outgrows_its_memory_frees_it_for_all_who_shared_it() -> None:
    start, expected = grown(6)
    longer = start.append(new(1, 1))
    assert start.tensor.data_ptr() == longer.tensor.data_ptr()
    assert torch.equal(start.tensor, expected)


@pytest.mark.parametrize("own", [copy.deepcopy, lambda t: with_room([t])[0], lambda t: t.select(torch.arange(2))])
def test_a_copy_and_its_original_go_on_apart(own) -> None:
    tokens, expected = grown(5, 1, 1)
    other = own(tokens)
    right, left = other.append(new(1, 7)), tokens.append(new(1, 8))
    assert torch.equal(right.tensor, torch.cat([expected, new(1, 7)], 2))
    assert torch.equal(left.tensor, torch.cat([expected, new(1, 8)], 2))
    assert right.tensor.data_ptr() == other.tensor.data_ptr() != left.tensor.data_ptr()


def test_rows_are_picked_with_their_room_and_without_what_lies_behind() -> None:
    start, expected = grown(5, 1)
    start.append(new(1, 9))
    index = torch.tensor([1, 1, 0])
    (picked,) = select_rows((start,), index)
    assert torch.equal(picked.tensor, expected[index])
    assert picked.capacity == 10
    after = picked.append(new(1, 7, batch=3))
    assert after.tensor.data_ptr() == picked.tensor.data_ptr()
    assert torch.equal(after.tensor, torch.cat([expected[index], new(1, 7, batch=3)], 2))


def test_in_a_nest_it_is_one_tensor_and_a_view_of_it_is_never_written_to() -> None:
    tokens, expected = grown(5, 1)
    assert torch.equal(tree_leaves((tokens, 3))[0], expected)
    row, _ = tree_map(lambda t: t[1:] if isinstance(t, torch.Tensor) else t, (tokens, 3))
    assert torch.equal(row.append(new(1, 7, 1)).tensor, torch.cat([expected[1:], new(1, 7, 1)], 2))
    assert torch.equal(tokens.append(new(1, 8)).tensor, torch.cat([expected, new(1, 8)], 2))


def test_gradients_reach_all_tokens() -> None:
    first, then = (new(n).requires_grad_() for n in (3, 2))
    tokens = Tokens(first).append(then).append(then)
    tokens.tensor.sum().backward()
    assert first.grad.eq(1).all()
    assert then.grad.eq(2).all()
    with torch.no_grad():
        later = tokens.append(new(1)).append(new(1))
    assert not later.tensor.requires_grad
    assert tokens.tensor.requires_grad


def test_a_backward_pass_may_come_after_the_next_tokens() -> None:
    tokens, expected = grown(5, 1)
    q = torch.ones(2, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    scores = q @ tokens.tensor.mT
    tokens.append(new(1, 3)).append(new(9, 4))
    scores.sum().backward()
    assert torch.equal(q.grad, expected.sum(2, keepdim=True))


def test_what_began_under_inference_mode_goes_on_outside_and_the_other_way() -> None:
    with torch.inference_mode():
        inside, expected = grown(3, 1)
        picked = inside.select(torch.arange(2))
    for tokens in (inside, picked):
        assert torch.equal(tokens.append(new(1, 5)).append(new(1, 6)).tensor[:, :, :4], expected)
    outside, _ = grown(4)
    with torch.inference_mode():
        outside.append(new(1))
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (outside.tensor * weight).sum().backward()


def test_what_does_not_fit_is_refused_and_another_precision_is_kept() -> None:
    tokens, _ = grown(5, 1)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        tokens.append(new(1, batch=1))
    assert tokens.append(new(1).float()).tensor.dtype == torch.float64
    narrow = Tokens(new(4).float()).append(new(1).float())
    assert narrow.append(new(1)).tensor.dtype == torch.float64
