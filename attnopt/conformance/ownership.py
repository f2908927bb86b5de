"""Does anything that is done with a state reach another one? States may share memory, and none may notice it.

Without gradients, as in generation: that is where `Tokens` (ops/growing.py) are written to in place.
"""

import copy

import torch

from attnopt.conformance.case import Case, Findings, compare, same_bits, snapshot
from attnopt.mechanisms import Inputs, Mechanism
from attnopt.mechanisms.base import State, select_rows

PROMPT, STEPS = 13, 20
"""Tokens before and after a state is shared: memory that doubles is full at 26, in the midst of them."""


def ownership(case: Case) -> Findings:
    """A state handed back twice, copied, or picked from by beams goes on as if it were the only one."""
    mechanism = case.build()
    with torch.no_grad():
        yield from _twice(mechanism, case)
        yield from _beams(mechanism, case)


def _twice(mechanism: Mechanism, case: Case) -> Findings:
    """Continuations of one state take turns, token by token; then it, and one from their midst, are continued again."""
    texts = {name: _texts(case, seed) for name, seed in (("first", 2), ("second", 3), ("copied", 4), ("late", 5))}
    whole = {name: mechanism(x)[0] for name, x in texts.items()}
    _, state = mechanism(texts["first"].slice(0, PROMPT))
    before, states = snapshot(state), {"first": state, "second": state, "copied": copy.deepcopy(state)}
    midst: State = None
    for t in range(PROMPT, PROMPT + STEPS):
        for name in states:
            out, states[name] = mechanism(texts[name].slice(t, t + 1), states[name])
            yield compare(
                out, whole[name][:, :, t : t + 1], f"token {t} of the {name} of continuations that take turns"
            )
        midst = states["first"] if t == PROMPT + STEPS // 2 else midst
    yield same_bits(state, before, "a state after its continuations")
    out, _ = mechanism(texts["late"].slice(PROMPT), state)
    yield compare(out, whole["late"][:, :, PROMPT:], "a state continued anew after its continuations")
    start = PROMPT + STEPS // 2 + 1
    out, _ = mechanism(texts["first"].slice(start), midst)
    yield compare(out, whole["first"][:, :, start:], "a state from the midst of a continuation, continued again")


def _texts(case: Case, seed: int) -> Inputs:
    """Inputs that begin with the same prompt, and go on as `seed` says."""
    return _joined(case.inputs(PROMPT), case.inputs(STEPS, seed=seed))


def _joined(first: Inputs, then: Inputs) -> Inputs:
    """The tokens of both, one after the other."""
    assert first.hidden is not None
    assert then.hidden is not None
    q, k, v = (torch.cat(pair, 2) for pair in ((first.q, then.q), (first.k, then.k), (first.v, then.v)))
    return Inputs(q, k, v, torch.cat([first.hidden, then.hidden], 1))


def _beams(mechanism: Mechanism, case: Case) -> Findings:
    """Beams that copy and drop each other, and the rows that were there before the last choice, continued as well."""
    text = case.inputs(PROMPT, batch=3)
    _, state = mechanism(text)
    for step, chosen in enumerate([[0, 0, 2], [2, 1, 0], [1, 1, 1], [0, 1, 2], [2, 2, 0]] * 4):
        left, left_text = state, text
        new = case.inputs(1, batch=3, seed=10 + step)
        state, text = select_rows(state, torch.tensor(chosen)), _joined(_rows(text, chosen), new)
        out, state = mechanism(new, state)
        yield compare(out, mechanism(text)[0][:, :, -1:], f"beams after choice {step + 1}")
        other = case.inputs(1, batch=3, seed=40 + step)
        out, _ = mechanism(other, left)
        expected = mechanism(_joined(left_text, other))[0][:, :, -1:]
        yield compare(out, expected, f"the beams before choice {step + 1}, continued after it")


def _rows(x: Inputs, rows: list[int]) -> Inputs:
    return x.map(lambda t, _: t[rows])
