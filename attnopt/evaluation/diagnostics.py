"""What a student's KL alone does not say: which layer is off, what each branch, coefficient and random feature does.

Each question is asked on a few blocks and answered by rows for the record, none where it does not apply.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, get_args

import numpy as np
import torch

from attnopt.core.device import token_ids
from attnopt.evaluation.params import EvaluateParams
from attnopt.mechanisms.base import Mechanism
from attnopt.ops.divergence import forward_kl
from attnopt.records.evaluate import BranchRow, FeatureRow, LayerRow, PrunedRow
from attnopt.statistics import mean_and_error
from attnopt.student.attach import mechanisms_of
from attnopt.student.build import softmax_copy
from attnopt.student.calls import layer_calls, layer_inputs
from attnopt.student.layers import attention_layers
from attnopt.teacher.head import Head, head_of, hidden_states

CUTS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Shares of all coefficients that are cut, one after the other."""


class Findings(TypedDict):
    """The rows of all questions; empty where one does not apply."""

    layers: list[LayerRow]
    branches: list[BranchRow]
    pruned: list[PrunedRow]
    features: list[FeatureRow]


class Diagnostics:
    """The teacher's answers on a few blocks, against which students are held.

    Args:
        blocks: token ids (n, T), held out, to measure on.
        fit_blocks: the same of the train split, to fit untrained mechanisms to.
    """

    def __init__(self, teacher: Any, blocks: np.ndarray, fit_blocks: np.ndarray, params: EvaluateParams):
        self.params, self.teacher, self.head = params, teacher, head_of(teacher)
        self.batches = token_ids(blocks[: params.probe_blocks], teacher.device).split(params.batch)
        self.fit_ids = token_ids(fit_blocks[: params.probe_blocks], teacher.device)
        with torch.no_grad():
            self.hidden = [hidden_states(teacher, ids) for ids in self.batches]

    def of(self, student: Any, seed: int) -> Findings:
        """All answers about a student."""
        return Findings(
            layers=self.layers(student),
            branches=self.branches(student),
            pruned=self.pruned(student),
            features=self.features(student, seed),
        )

    @torch.no_grad()
    def kl(self, model: Any, head: Head) -> np.ndarray:
        """Forward KL (n, T - 1) of a model, whose head is given, to the teacher, in nats."""
        rows = []
        for ids, hidden in zip(self.batches, self.hidden, strict=True):
            for ours, theirs in zip(hidden_states(model, ids)[:, :-1], hidden[:, :-1], strict=True):
                log_p, log_q = (t.float().log_softmax(-1) for t in (self.head(theirs), head(ours)))
                rows.append(forward_kl(log_p, log_q).cpu())
        return torch.stack(rows).numpy()

    @torch.no_grad()
    def layers(self, student: Any) -> list[LayerRow]:
        """|| ours - theirs ||^2 / || theirs ||^2 of every attention layer's output on what the teacher's layer gets."""
        layers = attention_layers(student)
        sums = torch.zeros(len(layers), 2, dtype=torch.float64)
        for ids in self.batches:
            for i, (layer, call) in enumerate(zip(layers, layer_calls(self.teacher, ids), strict=True)):
                ours, theirs = layer(*call.args, **call.kwargs)[0].double(), call.output.double()
                sums[i] += torch.stack([(ours - theirs).square().sum(), theirs.square().sum()]).cpu()
        return [LayerRow(layer=i, error=error / norm) for i, (error, norm) in enumerate(sums.tolist())]

    def branches(self, student: Any) -> list[BranchRow]:
        """KL with all branches, then with some alone: a row for each value of the option `branches`."""
        found = mechanisms_of(student)
        kl: dict[str, np.ndarray] = {}
        for value in _branches(found):
            switched = [switch(m, value) for m in found]
            if all(switched):
                kl[value] = self._kl_with(student, switched)
        if len(kl) <= 2:
            return []
        return [
            BranchRow(branches=value, **compared) for value, compared in zip(kl, _compared([*kl.values()]), strict=True)
        ]

    def pruned(self, student: Any) -> list[PrunedRow]:
        """KL without the smallest coefficients of all layers together: first with all, then with fewer and fewer."""
        found = mechanisms_of(student)
        weights = sorted(w for m in found for w in _weights(m))
        cuts, kl = [], []
        for threshold in sorted({weights[int(share * len(weights))] for share in CUTS if weights}):
            cut = [m.pruned(threshold) or m for m in found]
            cuts.append((sum(len(_weights(m)) for m in cut), threshold))
            kl.append(self._kl_with(student, cut))
        return [
            PrunedRow(kept=kept, of=len(weights), threshold=threshold, **compared)
            for (kept, threshold), compared in zip(cuts, _compared(kl), strict=True)
        ]

    def features(self, student: Any, seed: int) -> list[FeatureRow]:
        """KL of the teacher with mechanisms like the student's, fitted and untrained, by number of random features."""
        found, draws = mechanisms_of(student), self.params.draws
        if not any(m.random_features for m in found):
            return []
        copied, rows = softmax_copy(self.teacher), []
        softmax, inputs = mechanisms_of(copied), layer_inputs(copied, self.fit_ids)
        for count in self.params.features:
            for draw in range(draws):
                drawn = redraw(found, count, seed * draws + draw)
                for mechanism, x in zip(drawn, inputs, strict=True):
                    if mechanism is not None:
                        mechanism.fit(x)
                kl = self._kl_with(copied, [new or old for new, old in zip(drawn, softmax, strict=True)])
                rows.append(FeatureRow(features=count, draw=draw, kl_forward=mean_and_error(kl)[0]))
        return rows

    def _kl_with(self, model: Any, mechanisms: Sequence[Any]) -> np.ndarray:
        """KL (n, T - 1) of the model with other mechanisms in its layers."""
        with replaced(model, mechanisms):
            return self.kl(model, head_of(model))


def _compared(every: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Of each KL (n, T - 1) its mean, and the standard errors of it and of its difference to the first."""
    found = []
    for kl in every:
        mean, error = mean_and_error(kl)
        difference = mean_and_error(kl - every[0])[1]
        found.append({"kl_forward": mean, "kl_forward_se": error, "difference_se": difference, "blocks": len(kl)})
    return found


@contextmanager
def replaced(model: Any, mechanisms: Sequence[Mechanism]) -> Iterator[None]:
    """Other mechanisms in a swapped model's layers, for a while."""
    layers, before = attention_layers(model), mechanisms_of(model)
    try:
        _put(layers, mechanisms)
        yield
    finally:
        _put(layers, before)


def _put(layers: Sequence[Any], mechanisms: Sequence[Mechanism]) -> None:
    for layer, mechanism in zip(layers, mechanisms, strict=True):
        layer.mechanism = mechanism


def _branches(mechanisms: Sequence[Mechanism]) -> list[str]:
    """The values of the option `branches`, first the default: all. None where the mechanisms run with fewer."""
    own = [m.options for m in mechanisms if "branches" in type(m.options).model_fields]
    if not own:
        return []
    field = type(own[0]).model_fields["branches"]
    values = get_args(field.annotation) if all(o.branches == field.default for o in own) else ()
    return sorted(values, key=lambda value: value != field.default)


def switch(mechanism: Mechanism, branches: str) -> Mechanism | None:
    """The same mechanism and weights with other `branches`; None where it does not run with these.

    A mechanism without that option is returned as it is.
    """
    options = mechanism.options
    if "branches" not in type(options).model_fields:
        return mechanism
    try:
        new = type(mechanism)(mechanism.geometry, type(options)(**options.model_dump() | {"branches": branches}))
    except ValueError:
        return None
    weights, wanted = mechanism.state_dict(), new.state_dict()
    if any(name not in weights or weights[name].shape != t.shape for name, t in wanted.items()):
        return None
    new.load_state_dict({name: weights[name] for name in wanted}, assign=True)
    return new


def redraw(mechanisms: Sequence[Mechanism], features: int, seed: int) -> list[Mechanism | None]:
    """New ones with so many random features, drawn as `attach` draws them; None for those without any."""
    new: list[Mechanism | None] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for m in mechanisms:
            if m.random_features is None:
                new.append(None)
                continue
            options = m.options.model_copy(update={m.random_features: features})
            new.append(type(m)(m.geometry, options).to(next(m.parameters())))
    return new


def _weights(mechanism: Mechanism) -> list[float]:
    """The largest coefficient, over heads, of everything that can be cut."""
    return [w.detach().max().item() for w in mechanism.coefficients().values()] if mechanism.pruned(0.0) else []
