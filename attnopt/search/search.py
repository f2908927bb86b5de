"""The search itself: scores of single layers, mixes solved for, measured whole and corrected for, and their rivals."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from attnopt.records.search import Way
from attnopt.search import rivals
from attnopt.search.mixable import Mixable
from attnopt.search.params import SearchParams
from attnopt.search.probe import Measured, Probe
from attnopt.search.scores import corrected, replaced, restored
from attnopt.search.solve import Found, best_few, cost_of

Progress = Callable[..., Iterable]


@dataclass(frozen=True)
class Budgeted:
    """A mix for a budget, a share of softmax's state, and how it was found."""

    way: Way
    budget: float
    mix: Found


@dataclass
class Search:
    """A search in one library, on one probe.

        search = Search(mixable, probe, costs, softmax_bytes, params)
        search.run()
        [found.mix for found in search.found if found.way == "searched"]

    Args:
        costs: (layers, candidates) bytes of state. softmax_bytes: of the whole model with softmax.

    Attributes, once run:
        single, restored: scores of single layers. corrected: the totals that the last mixes were solved with.
        found: the mixes by budget, those searched and their rivals.
        gap: totals of the mixes rescored first, over their sums; None where nothing was predicted.
    """

    mixable: Mixable
    probe: Probe
    costs: np.ndarray
    softmax_bytes: int
    params: SearchParams
    progress: Progress = lambda steps, name: steps
    found: list[Budgeted] = field(default_factory=list)
    measured: dict[Found, Measured] = field(default_factory=dict)
    gap: float | None = None

    def run(self) -> None:
        """Raises: ValueError naming the budget that not even the smallest mix is within."""
        smallest = int(self.costs.min(1).sum())
        for share in self.params.budgets:
            if smallest > self.allowed(share):
                held = f"{smallest} bytes are the least, {self.allowed(share)} are allowed"
                raise ValueError(f"budgets: {share} of softmax's state is less than any mix holds: {held}")
        self.single = replaced(self.mixable, self.measure, partial(self.progress, name="layers replaced"))
        self.restored = restored(self.mixable, self.measure, partial(self.progress, name="layers restored"))
        self.corrected = self._scores()
        self._rivals()
        self._solve()

    def allowed(self, share: float) -> int:
        """Bytes of a budget."""
        return int(share * self.softmax_bytes)

    def measure(self, mix: Found) -> Measured:
        """A mix as a whole; measured once."""
        if mix not in self.measured:
            self.measured[mix] = self.probe.of(self.mixable.mixed(mix))
        return self.measured[mix]

    def total(self, mix: Found) -> float:
        """What is minimised, as measured."""
        return self.measure(mix).total(self.params.recall_weight)

    def _scores(self) -> np.ndarray:
        """(layers, candidates) what is added up."""
        replaced, restored = (scores.total(self.params.recall_weight) for scores in (self.single, self.restored))
        return {"replaced": replaced, "restored": restored, "both": (replaced + restored) / 2}[self.params.score]

    def _rivals(self) -> None:
        scores = self.corrected
        for share in self.params.budgets:
            within = (self.costs, self.allowed(share))
            ways: dict[Way, Found | None] = {
                "one": _one(scores, *within),
                "uniform": rivals.interleaved(scores, *within, rivals.spread),
                "ends": rivals.interleaved(scores, *within, rivals.ends),
                "greedy": rivals.greedy(scores, *within),
                "fewest_parameters": rivals.fewest_parameters(self.mixable.parameters(), *within),
            }
            self.found += [Budgeted(way, share, mix) for way, mix in ways.items() if mix is not None]
            drawn = rivals.random_mixes(*within, self.params.draws, self.params.seed)
            self.found += [Budgeted("random", share, mix) for mix in drawn]
        for one in self.progress(self.found, name="rivals"):
            self.measure(one.mix)

    def _solve(self) -> None:
        """Solve, measure the best few, correct the scores by them; in the end the best measured is what was sought."""
        first = self.corrected
        few: dict[float, dict[Found, None]] = {share: {} for share in self.params.budgets}
        for _ in self.progress(range(self.params.rounds), name="rounds"):
            for share, mixes in few.items():
                solved = best_few(self.corrected, self.costs, self.allowed(share), self.params.rescored)
                mixes |= dict.fromkeys(solved)
            totals = {mix: self.total(mix) for mixes in few.values() for mix in mixes}
            if self.gap is None:
                sums = sum(cost_of(mix, first) for mix in totals)
                self.gap = sum(totals.values()) / sums if sums > 0 else None
            self.corrected = corrected(first, totals)
        for share, mixes in few.items():
            best = min(mixes, key=self.total)
            self.found.append(Budgeted("searched", share, best))
            self.found += [Budgeted("rescored", share, mix) for mix in mixes if mix != best]


def _one(scores: np.ndarray, costs: np.ndarray, budget: int) -> Found | None:
    """The best candidate that may stand in every layer."""
    layers, candidates = scores.shape
    within = [(c,) * layers for c in range(candidates) if cost_of((c,) * layers, costs) <= budget]
    return min(within, key=lambda mix: cost_of(mix, scores), default=None)
