"""How fast training and filling masks are, side by side with Hugging Face's.

    python3 benchmark.py                                      training: the bundled text, the default model
    python3 benchmark.py --corpus my.txt --tokenizer bpe --n-layers 4 --d-model 256 --d-ff 1024
    python3 benchmark.py --model results/model                filling, in the bundled held-out sentences
    python3 benchmark.py --model my-run/model --input my.txt

Training is compared with Hugging Face's BERT of the same shape on the same text, and takes the flags of
train_mlm.py but for its budgets and --output; filling masks and scoring are compared with Hugging Face's
fill-mask pipeline. The contestants take turns, so that what else the machine does hits all alike, and the
tables give medians; memory is the peak of a process that trains nothing else. It needs requirements-dev.txt.
"""

import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import train_mlm
from masking import IGNORE
from mlm import bert as pretrained
from mlm import contestants as benchmark_filling
from mlm.common import fast_cpu as fast
from mlm.common.command_line import Parser, pick_device, run, whole
from mlm.common.distributed import Team
from mlm.common.errors import InputError
from mlm.common.experiments import scratch
from mlm.common.lines import lines_of

PRODUCTS = "matrix products of ours, fp32"
BUDGETS = "--epochs", "--max-steps", "--max-minutes", "--resume"  # of train_mlm.py


class Contestant(Protocol):
    def step(self, done: float) -> int:
        """One update, when a share `done` of the budget is used up -> its number of tokens."""


def begin(args: Namespace):
    """A training run as train_mlm.py begins it, and its tokenizer."""
    args = Namespace(**vars(args) | {"output": Path(scratch().name)})
    return train_mlm.prepare(args, Team(pick_device(args.device)))


class Ours:
    """train_mlm.py's own steps."""

    def __init__(self, args: Namespace, compiled: bool = False):
        self.state, _ = begin(args)
        self.batches = self.draw()
        if compiled:
            self.state.model.encoder.compile(dynamic=True)

    def draw(self) -> Iterator[np.ndarray]:
        """Epoch after epoch of batches, as indices of windows."""
        epoch = 0
        while True:
            yield from self.state.plan(epoch)
            epoch += 1

    def step(self, done: float) -> int:
        indices = next(self.batches)
        self.state.update(indices, done)
        return int(self.state.corpus.lengths[indices].sum())

    def logits(self, inputs: Tensor) -> Tensor:
        return self.state.model.eval()(inputs)


class Plain(Ours):
    """The same in fp32 without fast.py, and with logits for all positions rather than for the hidden ones."""

    def step(self, done: float) -> int:
        indices, state = next(self.batches), self.state
        inputs, labels = state.corrupt(state.corpus.rows(indices), torch.default_generator)
        loss = F.cross_entropy(state.model.train()(inputs).transpose(1, 2), labels)
        state.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimizer.step()
        return int(state.corpus.lengths[indices].sum())


class MatrixProducts(Ours):
    """Nothing but the fp32 matrix products of which our steps consist, forward and backward, one after
    another, on numbers that are there already: no fp32 training can be faster."""

    def __init__(self, args: Namespace):
        super().__init__(args)
        self.steps = []
        with torch.no_grad():
            for indices, _ in zip(self.batches, range(8), strict=False):
                inputs, labels = self.state.corrupt(self.state.corpus.rows(indices), torch.default_generator)
                shapes = Shapes()
                with shapes:
                    self.state.model.eval()(inputs, labels != IGNORE)
                self.steps.append((shapes.seen, int(self.state.corpus.lengths[indices].sum())))
        largest = max(
            math.prod(shape)
            for shapes, _ in self.steps
            for left, right in shapes
            for shape in (left, right, (*left[:-1], right[-1]))
        )
        self.numbers = torch.randn(3, largest, device=self.state.device)

    def step(self, done: float) -> int:
        shapes, tokens = self.steps.pop(0)
        self.steps.append((shapes, tokens))
        for left, right in shapes:
            a, b, gradient = (
                self.numbers[i][: math.prod(shape)].view(shape)
                for i, shape in enumerate((left, right, (*left[:-1], right[-1])))
            )
            _ = a @ b, gradient @ b.mT, a.mT @ gradient
        return tokens


class HuggingFace:
    """BertForMaskedLM of the same shape, begun and trained in the usual way: DataCollatorForLanguageModeling,
    AdamW, linear warm-up and decay, as many windows a batch as ours have on average, drawn at random or
    grouped by length as transformers.Trainer groups them."""

    def __init__(self, args: Namespace, grouped: bool, learning_rate: float = 1e-4):
        from transformers import (
            AutoModelForMaskedLM,
            AutoTokenizer,
            BertConfig,
            DataCollatorForLanguageModeling,
        )

        self.args, self.grouped, self.learning_rate, self.steps = args, grouped, learning_rate, 0
        self.state, tokenizer = begin(args)
        dropout = self.state.model.config.dropout
        rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
        with tempfile.TemporaryDirectory() as folder:
            pretrained.save(Path(folder), self.state.model, tokenizer)
            config = BertConfig.from_pretrained(folder, **rates)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            torch.manual_seed(args.seed)
            if args.init:  # both go on from the same weights
                model = AutoModelForMaskedLM.from_pretrained(folder, **rates)
            else:
                model = AutoModelForMaskedLM.from_config(config)
        self.model = model.to(self.state.device)
        self.collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=args.mask_prob)
        weights = self.model.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01, fused=True)
        self.batches = self.draw()

    def draw(self) -> Iterator[list[list[int]]]:
        """Epoch after epoch of batches of windows."""
        from transformers.trainer_pt_utils import get_length_grouped_indices

        corpus = self.state.corpus
        size = max(1, round(len(corpus) / len(self.state.plan(0))))
        while True:
            # grouped batches are shuffled as well: the first of every group are the longest
            if self.grouped:
                order = get_length_grouped_indices(corpus.lengths.tolist(), size)
            else:
                order = torch.randperm(len(corpus)).tolist()
            for start in (size * torch.randperm(-(-len(order) // size))).tolist():
                spans = [(corpus.offsets[i], corpus.offsets[i + 1]) for i in order[start : start + size]]
                yield [corpus.ids[begin:end].tolist() for begin, end in spans]

    def step(self, done: float) -> int:
        windows, device = next(self.batches), self.state.device
        warm = min(1.0, (self.steps + 1) / max(1, self.args.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(warm, 1 - done)
        batch = self.collate([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows])
        self.model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            loss = self.model(**batch.to(device)).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return sum(map(len, windows))

    def logits(self, inputs: Tensor) -> Tensor:
        return self.model.eval()(input_ids=inputs, attention_mask=inputs != self.state.corpus.special.pad).logits


class Shapes(TorchFunctionMode):
    """While it is entered, notes the shapes of the matrices that are multiplied, as pairs (..., M, K) and
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


def contestants(args: Namespace) -> dict[str, Callable[[], Contestant]]:
    """Name -> what makes it ready."""

    def at(precision: str) -> Namespace:
        return Namespace(**{**vars(args), "precision": precision})

    device = pick_device(args.device)
    best = args.precision or fast.best_precision(device)
    field = {f"ours, {best}": lambda: Ours(at(best))}
    if best == "bf16":
        field["ours, fp32"] = lambda: Ours(at("fp32"))
    if device.type == "cuda":
        field[f"ours, {best}, torch.compile"] = lambda: Ours(at(best), compiled=True)
    field["ours, fp32, without fast.py"] = lambda: Plain(at("fp32"))
    for precision in dict.fromkeys(["fp32", best] if device.type == "cuda" else ["fp32"]):
        field[f"Hugging Face, {precision}, grouped"] = lambda p=precision: HuggingFace(at(p), grouped=True)
        field[f"Hugging Face, {precision}, random"] = lambda p=precision: HuggingFace(at(p), grouped=False)
    field[PRODUCTS] = lambda: MatrixProducts(at("fp32"))
    return field


def timed_step(contestant: Contestant, device: torch.device) -> tuple[int, float]:
    """One update -> its tokens and its seconds."""
    started = time.perf_counter()
    tokens = contestant.step(done=0.5)
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return tokens, time.perf_counter() - started


def peak_memory(contestant: Contestant, device: torch.device) -> float:
    """The most memory that this process has held after ten updates (MiB): the device's on a GPU, else its
    own."""
    for _ in range(10):
        contestant.step(done=0.5)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":  # where ru_maxrss would count what the parent process held
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**10
    import resource  # which Windows has not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS


def peak_of(name: str) -> float:
    """peak_memory of a contestant in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{name}: its process ended early: {done.stderr.strip() or 'killed'}")
    return float(done.stdout)


def parse_args() -> tuple[Namespace, Namespace]:
    """The flags of the benchmark itself and those of training."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=whole(1), default=15, help="updates of each; the median counts")
    parser.add_argument("--model", type=Path, metavar="DIR", help="measure filling with this model")
    parser.add_argument("--input", type=Path, metavar="FILE", help="sentences, a line each, for --model")
    parser.add_argument("--memory-of", metavar="NAME", help="print the peak memory of one contestant alone")
    own, rest = parser.parse_known_args()
    if own.input and not own.model:
        parser.error("--input needs --model: training reads other files")
    for flag in rest:
        if own.model or flag.split("=")[0] in (*BUDGETS, "--output"):
            parser.error(f"{flag} has no use here{' beside --model' if own.model else ''}")
    return own, train_mlm.parse_args([*rest, "--device", own.device])


def need_transformers() -> None:
    """Raises InputError where Hugging Face's package is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise InputError("needs the package transformers; pip install -r requirements-dev.txt") from None


def main() -> None:
    own, args = parse_args()
    need_transformers()
    device = pick_device(args.device)
    if own.model:
        lines = list(lines_of(own.input or train_mlm.HERE / "data" / "held_out.txt"))
        return benchmark_filling.main(own.model, lines, device, own.rounds)
    field = contestants(args)
    if own.memory_of:
        if own.memory_of not in field:
            raise InputError(f"--memory-of {own.memory_of}: name one of: {'; '.join(field)}")
        print(peak_memory(field[own.memory_of](), device))
        return
    running = {name: start() for name, start in field.items()}
    first = next(iter(field))
    state = running[first].state
    print(
        f"{len(state.corpus):,} windows, {state.corpus.tokens:,} tokens in {len(state.plan(0)):,} batches; "
        f"{sum(p.numel() for p in state.model.parameters()):,} parameters; {device.type}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    rates: dict[str, list[float]] = {name: [] for name in field}
    for round_ in tqdm(range(-1, own.rounds), desc="taking turns", unit="round", leave=False):
        for name, contestant in running.items():
            scored, seconds = timed_step(contestant, device)
            if round_ >= 0:  # the first only warms up
                rates[name].append(scored / seconds)
    medians = {name: statistics.median(of) for name, of in rates.items()}
    print(f"\n{'training':34}{'tokens/s':>10}{'ratio':>8}{'of the products':>17}{'peak MiB':>10}")
    products = medians.pop(PRODUCTS)
    for name, rate in medians.items():
        row = f"{name:34}{rate:10,.0f}{medians[first] / rate:8.1f}{products / rate:17.2f}"
        print(f"{row}{peak_of(name):10,.0f}", flush=True)
    print(
        "\ntokens/s: tokens, padding not counted; ratio: the first line's tokens/s over these; of\n"
        "the products: a token's time over that of the fp32 matrix products that a step of ours consists of."
    )


if __name__ == "__main__":
    run(main)
