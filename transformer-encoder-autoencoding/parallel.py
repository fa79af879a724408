"""Several processes that train one model, as torchrun starts them, on one machine or many: each takes its
share of every batch, and the gradients are summed. A process alone is a team of one.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cli import InputError, under_torchrun

Share = TypeVar("Share", np.ndarray, Tensor)


def seed_all(*numbers: int) -> None:
    """Let PyTorch's random numbers follow from these."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@dataclass(frozen=True)
class Team:
    """This process is number `rank` of `size`; number 0 leads: it evaluates, saves and reports."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Team":
        """The team that torchrun has called together, or this process alone.

        Raises InputError where there is no such device for this process.
        """
        if not under_torchrun():
            return cls(device)
        if device.type == "mps":
            raise InputError("several processes cannot share an Apple GPU; take --device cpu")
        if device.type == "cuda":
            number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if number >= there:
                raise InputError(f"more processes than GPUs; take --nproc-per-node {there}, or --device cpu")
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        patience = timedelta(days=7)  # for what the leader does first
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
        return cls(device, dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, saves and reports."""
        return self.rank == 0

    def __str__(self) -> str:
        return self.device.type if self.size == 1 else f"{self.size} x {self.device.type}"

    def share(self, batch: Share) -> Share:
        """The members of a batch that are this process's: rows of an array or a tensor."""
        return batch[self.rank :: self.size]

    def total(self, *numbers: float) -> list[float]:
        """The sums of these numbers over all processes."""
        if self.size == 1:
            return [float(number) for number in numbers]
        return self.add_up(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter], *numbers: float) -> list[float]:
        """Replace every gradient by its sum over all processes; a missing one counts as zero -> the sums of
        these numbers too, in single precision. All are one message, so that a step waits only once."""
        if self.size == 1:
            return [float(number) for number in numbers]
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        own = [parameter.grad.flatten() for parameter in parameters]
        own.append(torch.tensor(numbers, dtype=torch.float32, device=self.device))
        *summed, totals = self.add_up(torch.cat(own)).split([len(part) for part in own])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return totals.tolist()

    def add_up(self, tensor: Tensor) -> Tensor:
        """Raises InputError where another process has ended."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"another process of this run has ended ({reason}), and says why; once training has begun, "
                "--resume goes on from the last state"
            ) from None
        return tensor

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """What is done within is done by the leader, and then, when it is ready, by the others."""
        if not self.leads:
            self.total(0)
        yield
        if self.leads:
            self.total(0)

    def leave(self) -> None:
        """Part from the others, all at the same time."""
        if self.size > 1:
            self.total(0)
            dist.destroy_process_group()
