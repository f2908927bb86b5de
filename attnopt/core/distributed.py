"""One process or several: under `accelerate launch` or `distill.processes`, gradients are averaged over all (DDP).

With weights sharded (FSDP2) a process keeps its part of them, as DTensors, and has a module's whole only while it runs.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from attnopt.core.errors import RunError


class Alone:
    """One process: what the trainer needs of a group of one."""

    rank, size, main = 0, 1, True
    shards = False
    """Whether `shard` does anything."""

    def __init__(self, device: torch.device):
        self.device = device

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def shard(self, modules: Iterable[nn.Module]) -> None:
        """Leave each process its part of the modules' parameters, in place; inner modules come first."""

    def without_sync(self, module: nn.Module) -> Any:
        """Backward passes in this context do not exchange gradients: for all but the last part of a batch."""
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        return value

    def agree(self, value: int) -> bool:
        """Whether all processes have the same value."""
        return True

    def wait(self) -> None:
        """Until all processes are here."""


class Group(Alone):
    """Several processes, by accelerate: gloo on CPUs, NCCL on GPUs."""

    def __init__(self, device: torch.device):
        from accelerate import Accelerator, DistributedDataParallelKwargs

        # A switched-off branch or an unread bias has no gradient; buffers are the same everywhere from the start.
        keywords = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        self.accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[keywords])
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.device = self.accelerator.device

    def wrap(self, module: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(module)

    def without_sync(self, module: nn.Module) -> Any:
        return self.accelerator.no_sync(module)

    def mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "mean")

    def agree(self, value: int) -> bool:
        return len(set(self.accelerator.gather(torch.tensor([value], device=self.device)).tolist())) == 1

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


class Sharded(Group):
    """Several processes that share the weights too, by torch's FSDP2."""

    shards = True

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module: its sharded parts average their gradients themselves."""
        return module

    def without_sync(self, module: nn.Module) -> Any:
        """Each part is exchanged: what waits would be whole gradients."""
        return nullcontext()

    def shard(self, modules: Iterable[nn.Module]) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        warnings.filterwarnings("ignore", ".*returned a view tensor")  # which no model here changes in place
        mesh = init_device_mesh(self.device.type, (self.size,))
        for module in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, which all processes ask for together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' part of a whole tensor, cut as `like` is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def let_go(model: nn.Module) -> None:
    """Free what sharded modules had gathered, where a call of them did not end."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def load_whole(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole tensors, of all or some names of a module that may be sharded; each process takes its part of them."""
    own = module.state_dict()
    module.load_state_dict({name: part_like(t, own[name]) for name, t in weights.items()}, strict=False)


def launched_processes() -> int:
    """How many processes a launcher started this one among."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join_group(device: torch.device, sharded: bool = False) -> Alone:
    """The group that this process belongs to."""
    several = Sharded if sharded else Group
    return several(device) if launched_processes() > 1 else Alone(device)


def launch_processes(processes: int, arguments: list[str]) -> None:
    """Run an attnopt command in several processes on this machine, as `accelerate launch` would."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads} | os.environ | {"PYTHONPATH": _path()}
    done = subprocess.run([sys.executable, *launcher, "-m", "attnopt.cli", *arguments], env=environment, check=False)
    if done.returncode:
        raise RunError(f"attnopt {' '.join(arguments)}: one of {processes} processes failed; its error stands above")


def _path() -> str:
    """This checkout first, then what was there."""
    return os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
