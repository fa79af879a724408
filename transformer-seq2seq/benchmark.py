"""How fast training and generation are, side by side with what else there is for such models.

    python3 benchmark.py                                      training: the bundled pairs, the default model
    python3 benchmark.py --pairs my.tsv --tokenizer bpe --n-layers 4 --dropout 0.3
    python3 benchmark.py --model model                        generation, from the bundled held-out prompts
    python3 benchmark.py --model my-run/model --input my.txt

Training is compared with Hugging Face's MarianMT of the same shape on the same text, and takes the flags of
train.py but for its budgets and --output; generation is compared with Hugging Face's generate and with
CTranslate2. The contestants take turns, so that what else the machine does hits all alike, and the tables
give medians; memory is the peak of a process that trains nothing else. It needs requirements-dev.txt.
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
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import train
from seq2seq import contestants as benchmark_generation
from seq2seq import marian as pretrained
from seq2seq.common import fast_cpu as fast
from seq2seq.common.command_line import Parser, pick_device, run, whole
from seq2seq.common.distributed import Team
from seq2seq.common.errors import InputError
from seq2seq.common.experiments import scratch
from seq2seq.common.lines import decode_lines, open_text
from seq2seq.pairs import read_pairs
from seq2seq.tokenizer import IGNORE

HERE = Path(__file__).parent
PRODUCTS = "matrix products of ours, fp32"
OF_TRAINING = "--epochs", "--max-steps", "--max-minutes", "--resume", "--output"  # have no use here


class Contestant(Protocol):
    def step(self, done: float) -> int:
        """One update, with a share `done` of the budget used up -> its number of target tokens."""


def begin(args: Namespace):
    """A training run as train.py begins it, and its tokenizer."""
    args = Namespace(**vars(args) | {"output": Path(scratch().name)})
    return train.prepare(args, Team(pick_device(args.device)))


class Ours:
    """train.py's own steps."""

    def __init__(self, args: Namespace, compiled: bool = False):
        self.state, _ = begin(args)
        self.batches = self.draw()
        if compiled:
            self.state.model.states = torch.compile(self.state.model.states, dynamic=True)

    def draw(self) -> Iterator[np.ndarray]:
        """Epoch after epoch of batches, as indices of pairs."""
        epoch = 0
        while True:
            yield from self.state.plan(epoch)
            epoch += 1

    def step(self, done: float) -> int:
        indices = next(self.batches)
        self.state.update(indices, done)
        return int(self.state.corpus.target.lengths[indices].sum())


class Plain(Ours):
    """The same in fp32 without fast.py: PyTorch's dropout, and a loss that holds all logits."""

    def step(self, done: float) -> int:
        indices, state = next(self.batches), self.state
        batch = state.corpus.batch(indices).to(state.device)
        logits = state.model.train()(batch.source, batch.target)[..., :-1]
        loss = F.cross_entropy(logits.transpose(1, 2), batch.labels, label_smoothing=state.args.label_smoothing)
        state.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        for optimizer in state.optimizers:
            optimizer.step()
        return int(state.corpus.target.lengths[indices].sum())


class MatrixProducts(Ours):
    """Nothing but the fp32 matrix products of which our steps consist, forward and backward, one after
    another, on numbers that are there already: no fp32 training can be faster."""

    def __init__(self, args: Namespace):
        super().__init__(args)
        self.steps = []
        with torch.no_grad():
            for indices, _ in zip(self.batches, range(8), strict=False):
                batch = self.state.corpus.batch(indices).to(self.state.device)
                shapes, model = Shapes(), self.state.model.eval()
                with shapes:
                    model.project(model.states(batch.source, batch.target)[batch.labels != IGNORE])
                self.steps.append((shapes.seen, int(self.state.corpus.target.lengths[indices].sum())))
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
    """MarianMTModel of the same shape, trained in the usual way: its own loss, AdamW, as many pairs a batch
    as ours have on average, drawn at random or grouped by length as transformers.Trainer groups them."""

    def __init__(self, args: Namespace, grouped: bool):
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        self.args, self.grouped = args, grouped
        self.state, tokenizer = begin(args)
        with tempfile.TemporaryDirectory() as folder:
            pretrained.save(Path(folder), self.state.model, tokenizer)
            config = AutoConfig.from_pretrained(folder, dropout=self.state.model.config.dropout)
        torch.manual_seed(args.seed)
        self.model = AutoModelForSeq2SeqLM.from_config(config).to(self.state.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batches = self.draw()

    def draw(self) -> Iterator[np.ndarray]:
        """Epoch after epoch of batches, as indices of pairs."""
        from transformers.trainer_pt_utils import get_length_grouped_indices

        corpus = self.state.corpus
        size = max(1, round(len(corpus) / len(self.state.plan(0))))
        while True:
            # grouped batches are shuffled as well: the first of every group are the longest
            if self.grouped:
                order = get_length_grouped_indices(corpus.source.lengths.tolist(), size)
            else:
                order = torch.randperm(len(corpus)).tolist()
            for start in (size * torch.randperm(-(-len(order) // size))).tolist():
                yield np.array(order[start : start + size])

    def step(self, done: float) -> int:
        indices, corpus, device = next(self.batches), self.state.corpus, self.state.device
        source = torch.from_numpy(corpus.source.rows(indices, corpus.pad_id)).to(device)
        labels = torch.from_numpy(corpus.target.rows(indices, IGNORE)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            loss = self.model(input_ids=source, attention_mask=source != corpus.pad_id, labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return int(corpus.target.lengths[indices].sum())


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
    """One update -> its target tokens and its seconds."""
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
    parser.add_argument("--model", type=Path, metavar="DIR", help="measure generation with this model")
    parser.add_argument("--input", type=Path, metavar="FILE", help="prompts, a line each, for --model")
    parser.add_argument("--memory-of", metavar="NAME", help="print the peak memory of one contestant alone")
    own, rest = parser.parse_known_args()
    if own.input and not own.model:
        parser.error("--input needs --model: training reads other files")
    for flag in rest:
        if own.model or flag.split("=")[0] in OF_TRAINING:
            parser.error(f"{flag} has no use here{' beside --model' if own.model else ''}")
    return own, train.parse_args([*rest, "--device", own.device])


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a file, blank ones left out; without one the bundled held-out prompts."""
    if path is None:
        return [pair.source for pair in read_pairs(HERE / "data" / "held_out.tsv")]
    with open_text(path) as stream:
        if not (lines := [line for line in decode_lines(stream, str(path)) if line.strip()]):
            raise InputError(f"{path}: holds no text; a prompt a line is needed")
    return lines


def main() -> None:
    own, args = parse_args()
    try:
        import ctranslate2  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(f"needs the package {error.name}; pip install -r requirements-dev.txt") from None
    device = pick_device(args.device)
    if own.model:
        return benchmark_generation.main(own.model, read_prompts(own.input), device, own.rounds)
    field = contestants(args)
    if own.memory_of:
        if own.memory_of not in field:
            raise InputError(f"--memory-of {own.memory_of}: name one of: {'; '.join(field)}")
        print(peak_memory(field[own.memory_of](), device))
        return
    running = {name: start() for name, start in field.items()}
    first = next(iter(field))
    state = running[first].state
    tokens = len(state.corpus.target.ids)
    print(
        f"{len(state.corpus):,} pairs, {tokens:,} target tokens in {len(state.plan(0)):,} batches; "
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
        "\ntokens/s: of target tokens, padding not counted; ratio: the first line's tokens/s over these; of\n"
        "the products: a token's time over that of the fp32 matrix products that a step of ours consists of."
    )


if __name__ == "__main__":
    run(main)
