"""Contestants that take turns, so that what else the machine does hits all alike; tables of medians; the memory
that each takes alone; and the matrix products of which a training step consists, as a bound on its speed."""

import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from .errors import InputError

Turn = Callable[[], Any]  # does some work -> whatever `count` understands


def take_turns(
    contestants: Mapping[str, Turn], rounds: int, count: Callable[[Any], float], task: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Let every contestant work once a round. Return for each the median of what it does a second, as counted
    by `count`, and what its last turn returned. A first round, not counted, warms up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    answers = {}
    for round_ in tqdm(range(-1, rounds), desc=task, unit="round", leave=False, disable=None):
        for name, turn in contestants.items():
            started = time.perf_counter()
            answers[name] = turn()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            seconds = time.perf_counter() - started
            if round_ >= 0:
                rates[name].append(count(answers[name]) / seconds)
    return {name: statistics.median(of) for name, of in rates.items()}, answers


def peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has held so far (MiB): the device's on a GPU, else its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":  # where ru_maxrss would count what the parent process held
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**10
    try:
        import resource
    except ImportError:  # on Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS


def peak_memory_of(name: str, variable: str) -> float:
    """Run this very command again with the environment variable set to a contestant's name, for which it
    prints the peak memory of that contestant alone."""
    done = subprocess.run(
        [sys.executable, *sys.argv], capture_output=True, encoding="utf-8", env=os.environ | {variable: name}
    )
    if done.returncode:
        raise InputError(f"{name}: its process ended early: {done.stderr.strip() or 'killed'}")
    return float(done.stdout.splitlines()[-1])


class RecordShapes(TorchFunctionMode):
    """Inside this context the shapes of the matrices that are multiplied are recorded, as pairs (..., M, K) and
    (..., K, N)."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight = args[0], args[1]
            self.seen.append(((x[..., 0].numel(), weight.size(1)), (weight.size(1), weight.size(0))))
        elif function is F.scaled_dot_product_attention:
            q, k, v = (tuple(tensor.shape) for tensor in args[:3])
            scores = (*q[:-1], k[-2])
            self.seen += [(q, (*k[:-2], k[-1], k[-2])), (scores, v)]
        return function(*args, **(kwargs or {}))


class MatrixProducts:
    """The fp32 matrix products of some training steps and nothing else, forward and backward, one after
    another, on numbers that are there already: no fp32 training can be faster."""

    def __init__(self, forwards: Iterable[tuple[Callable[[], Any], int]], device: torch.device):
        """forwards: forward passes of training steps, each with the number of its tokens."""
        self.steps = []
        for forward, tokens in forwards:
            with torch.no_grad(), RecordShapes() as shapes:
                forward()
            self.steps.append((shapes.seen, tokens))
        largest = max(
            math.prod(shape)
            for shapes, _ in self.steps
            for left, right in shapes
            for shape in (left, right, (*left[:-1], right[-1]))
        )
        self.numbers: Tensor = torch.randn(3, largest, device=device)

    def step(self) -> int:
        """Do the products of the next step -> the number of its tokens."""
        shapes, tokens = self.steps.pop(0)
        self.steps.append((shapes, tokens))
        for left, right in shapes:
            a, b, gradient = (
                self.numbers[i][: math.prod(shape)].view(shape)
                for i, shape in enumerate((left, right, (*left[:-1], right[-1])))
            )
            _ = a @ b, gradient @ b.mT, a.mT @ gradient
        return tokens
