"""The search itself: scores of single layers, mixes solved for, measured whole and corrected for, and their rivals."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from attnopt.records.search import Cost, Way
from attnopt.search import rivals
from attnopt.search.costs import Costs
from attnopt.search.mixable import Mixable
from attnopt.search.params import SearchParams
from attnopt.search.prefix import Prefix
from attnopt.search.probe import Measured, Probe
from attnopt.search.scores import Scores, corrected, replaced, restored
from attnopt.search.solve import Found, best_few, cost_of

Progress = Callable[..., Iterable]
NAMES: dict[Cost, tuple[str, str, str]] = {
    "state": ("budgets", "bytes", "state"),
    "decode": ("decode", "nanoseconds", "decoding step"),
    "prefill": ("prefill", "nanoseconds", "prefill"),
}
"""Of a cost: the key of its budgets, its unit, and what softmax's is called."""


@dataclass(frozen=True)
class Budget:
    """A share of what softmax costs."""

    cost: Cost
    share: float


@dataclass(frozen=True)
class Budgeted:
    """A mix for a budget, and how it was found."""

    way: Way
    budget: Budget
    mix: Found


@dataclass
class Search:
    """A search in one library, on one probe.

        search = Search(mixable, probe, {"state": state_costs(mixable, ids)}, params)
        search.run()
        [found.mix for found in search.found if found.way == "searched"]

    Args:
        costs: of every sort that there is a budget of.
        measured: what an earlier search measured on the same probe.

    Attributes, once run:
        single, restored: scores of single layers; the latter None where `params` do not ask for them. corrected: the
            totals that the last mixes were solved with.
        found: the mixes by budget, those searched and their rivals.
        gap: totals of the mixes rescored first, over their sums; None where nothing was predicted.
    """

    mixable: Mixable
    probe: Probe
    costs: Mapping[Cost, Costs]
    params: SearchParams
    progress: Progress = lambda steps, name: steps
    measured: dict[Found, Measured] = field(default_factory=dict)
    found: list[Budgeted] = field(default_factory=list)
    restored: Scores | None = None
    gap: float | None = None

    def __post_init__(self) -> None:
        self.prefix = Prefix(self.mixable, self.probe.of)
        self.budgets = budgets_of(self.params)

    def run(self) -> None:
        """Raises: ValueError naming the budget that not even the cheapest mix is within."""
        self._refuse_small()
        self.single = replaced(self.mixable, self.measure, partial(self.progress, name="layers replaced"))
        if self.params.restored:
            self.restored = restored(self.mixable, self.measure, partial(self.progress, name="layers restored"))
        self.corrected = self._scores()
        self._rivals()
        self._solve()

    def _refuse_small(self) -> None:
        for budget in self.budgets:
            each, allowed = self._within(budget)
            if (least := int(each.min(1).sum())) > allowed:
                name, unit, of = NAMES[budget.cost]
                held = f"{least} {unit} are the least, {allowed} are allowed"
                raise ValueError(f"{name}: {budget.share} of softmax's {of} is less than any mix needs: {held}")

    def _within(self, budget: Budget) -> tuple[np.ndarray, int]:
        """(layers, candidates) costs, and what they may sum up to."""
        costs = self.costs[budget.cost]
        return costs.each, costs.allowed(budget.share)

    def measure(self, mix: Found, keep: int = 0) -> Measured:
        """A mix as a whole; measured once. The next mixes have its first `keep` layers in common with it."""
        if mix not in self.measured:
            self.measured[mix] = self.prefix.run(mix, keep)
        return self.measured[mix]

    def total(self, mix: Found) -> float:
        """What is minimised, as measured."""
        return self.measure(mix).total(self.params.recall_weight)

    def _scores(self) -> np.ndarray:
        """(layers, candidates) what is added up."""
        replaced = self.single.total(self.params.recall_weight)
        if self.params.score == "replaced" or self.restored is None:
            return replaced
        restored = self.restored.total(self.params.recall_weight)
        return restored if self.params.score == "restored" else (replaced + restored) / 2

    def _rivals(self) -> None:
        scores = self.corrected
        for budget in self.budgets:
            within = self._within(budget)
            ways: dict[Way, Found | None] = {
                "one": _one(scores, *within),
                "uniform": rivals.interleaved(scores, *within, rivals.spread),
                "ends": rivals.interleaved(scores, *within, rivals.ends),
                "greedy": rivals.greedy(scores, *within),
                "fewest_parameters": rivals.fewest_parameters(self.mixable.parameters(), *within),
            }
            self.found += [Budgeted(way, budget, mix) for way, mix in ways.items() if mix is not None]
            drawn = rivals.random_mixes(*within, self.params.draws, self.params.seed)
            self.found += [Budgeted("random", budget, mix) for mix in drawn]
        for one in self.progress(self.found, name="rivals"):
            self.measure(one.mix)

    def _solve(self) -> None:
        """Solve, measure the best few, correct the scores by them; in the end the best measured is what was sought."""
        first = self.corrected
        few: dict[Budget, dict[Found, None]] = {budget: {} for budget in self.budgets}
        for _ in self.progress(range(self.params.rounds), name="rounds"):
            for budget, mixes in few.items():
                mixes |= dict.fromkeys(best_few(self.corrected, *self._within(budget), self.params.rescored))
            totals = {mix: self.total(mix) for mixes in few.values() for mix in mixes}
            if self.gap is None:
                sums = sum(cost_of(mix, first) for mix in totals)
                self.gap = sum(totals.values()) / sums if sums > 0 else None
            self.corrected = corrected(first, totals)
        for budget, mixes in few.items():
            best = min(mixes, key=self.total)
            self.found.append(Budgeted("searched", budget, best))
            self.found += [Budgeted("rescored", budget, mix) for mix in mixes if mix != best]


def budgets_of(params: SearchParams) -> list[Budget]:
    """Of state, then of time."""
    shares: dict[Cost, list[float]] = {"state": params.budgets, "decode": params.decode, "prefill": params.prefill}
    return [Budget(cost, share) for cost, of in shares.items() for share in of]


def _one(scores: np.ndarray, costs: np.ndarray, budget: int) -> Found | None:
    """The best candidate that may stand in every layer."""
    layers, candidates = scores.shape
    within = [(c,) * layers for c in range(candidates) if cost_of((c,) * layers, costs) <= budget]
    return min(within, key=lambda mix: cost_of(mix, scores), default=None)
