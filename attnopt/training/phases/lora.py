"""A light last phase: the distill objective on low-rank adapters of the attention's projections, merged at its end.

Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from typing import Any, ClassVar

import torch

from attnopt.core.errors import UserError
from attnopt.student.build import Trainable, projections
from attnopt.training.params import PhaseName
from attnopt.training.phases.distill import Distill


class Lora(Distill):
    """The distill objective; what trains are the adapters, drawn from the run's features seed."""

    name: ClassVar[PhaseName] = "lora"

    def trainable(self) -> Trainable:
        """The adapters' own weights do not exist yet: the projections they stand for, to know whether there are any."""
        return Trainable({}, {f"{name}.weight": module.weight for name, module in self._targets().items()})

    def _targets(self) -> dict[str, Any]:
        """The projections that get an adapter, by name. Raises UserError where `lora.targets` names none of them."""
        wanted = self.variant.lora.targets
        found = projections(self.student)
        chosen = {n: m for n, m in found.items() if wanted is None or n.rsplit(".", 1)[-1] in wanted}
        if not chosen:
            names = sorted({n.rsplit(".", 1)[-1] for n in found})
            raise UserError(f"lora.targets: {wanted} are no projections of this model; it has {', '.join(names)}")
        return chosen

    def begin(self) -> Trainable:
        """Put adapters around the projections, in place: the first factor drawn, the second zero."""
        from peft import LoraConfig, inject_adapter_in_model  # seconds that no other phase needs

        p, targets = self.variant.lora, self._targets()
        transposed = any(type(module).__name__ == "Conv1D" for module in targets.values())
        config = LoraConfig(
            r=p.rank, lora_alpha=p.alpha, target_modules=list(targets), lora_dropout=0.0, fan_in_fan_out=transposed
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds.features)
            inject_adapter_in_model(config, self.student)
        return Trainable({}, {n: t for n, t in self.student.named_parameters() if t.requires_grad})

    def end(self) -> None:
        """Add every adapter to its projection, which takes its place again."""
        from peft.tuners.lora import LoraLayer

        for name, module in list(self.student.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                self.student.set_submodule(name, module.get_base_layer())
        del self.student.peft_config
