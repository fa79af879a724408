"""Data-parallel training in the processes that torchrun starts, on one machine, or on several that share the output
folder: each process takes its shard of every batch, and the gradients are summed. A process alone is a world of one.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import InputError, launched_by_torchrun


def seed_all(*numbers: int) -> None:
    """Seed PyTorch's random numbers with all of these."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@dataclass(frozen=True)
class DistributedContext:
    """This process is rank `rank` of `world_size`; rank 0 evaluates, saves and reports."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "DistributedContext":
        """Join the processes that torchrun has started, or return this process alone."""
        if not launched_by_torchrun():
            return cls(device)
        if device.type == "mps":
            raise InputError("several processes cannot share an Apple GPU; train on the CPU", "device")
        if device.type == "cuda":
            number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if number >= there:
                raise InputError(f"more processes than GPUs; start {there}, or train on the CPU", "device")
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        patience = timedelta(days=7)  # while rank 0 tokenizes
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
        return cls(device, dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """True for the process that evaluates, saves and reports."""
        return self.rank == 0

    def __str__(self) -> str:
        return self.device.type if self.world_size == 1 else f"{self.world_size} x {self.device.type}"

    def shard(self, batch: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Return this process's rows of a batch."""
        return batch[self.rank :: self.world_size]

    def all_reduce(self, *numbers: float) -> list[float]:
        """Return the sums of these numbers over all processes."""
        if self.world_size == 1:
            return [float(number) for number in numbers]
        return self._sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter], *numbers: float) -> list[float]:
        """Replace every gradient by its sum over all processes; a missing one counts as zero.

        Return the sums of these numbers too, in single precision. All travel in one message, so that a step
        waits only once.
        """
        if self.world_size == 1:
            return [float(number) for number in numbers]
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        own = [parameter.grad.flatten() for parameter in parameters]
        own.append(torch.tensor(numbers, dtype=torch.float32, device=self.device))
        *summed, totals = self._sum(torch.cat(own)).split([len(part) for part in own])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return totals.tolist()

    def _sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes in place."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"another process of this run has ended ({reason}); its own message says why. Once training has "
                "begun, the run can be resumed from its last checkpoint",
                "resume",
            ) from None
        return tensor

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let rank 0 run the block first; the other ranks wait, then run it."""
        if not self.is_main:
            self.all_reduce(0)
        yield
        if self.is_main:
            self.all_reduce(0)

    def destroy(self) -> None:
        """Wait for the other processes, then leave the process group."""
        if self.world_size > 1:
            self.all_reduce(0)
            dist.destroy_process_group()
