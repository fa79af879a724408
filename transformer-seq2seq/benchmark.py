"""How fast training is, side by side with Hugging Face's MarianMT of the same shape, weights and text.

    python3 benchmark.py                                      the bundled pairs and the default model
    python3 benchmark.py --pairs my.tsv --tokenizer bpe --n-layers 4 --dropout 0.3

All flags but --rounds are those of train.py. The contestants take turns, so that what else the machine does
hits all alike, and the table gives medians; memory is the peak of a process that trains nothing else. It
needs requirements-dev.txt.
"""

import multiprocessing
import re
import resource
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import fast
import pretrained
import train
from cli import InputError, Parser, pick_device, run, whole
from pairs import IGNORE, training_and_held_out

HERE = Path(__file__).parent
Contestant = Iterator[int]  # every next() makes one update and gives its number of target tokens


def begin(args: Namespace):
    """A training run as train.py begins it, and its tokenizer."""
    pairs, held_out = training_and_held_out(
        args.pairs or [HERE / "data" / "train.tsv"],
        args.held_out or (None if args.pairs else HERE / "data" / "held_out.tsv"),
        (args.source_column, args.target_column),
        args.seed,
    )
    return train.prepare(args, pick_device(args.device), pairs, held_out)


def batches(state: train.Run) -> Iterator[np.ndarray]:
    """Epoch after epoch of the batches that training takes."""
    epoch = 0
    while True:
        yield from state.plan(epoch)
        epoch += 1


def ours(args: Namespace, compiled: bool = False) -> Contestant:
    """train.py's own steps."""
    state, _ = begin(args)
    if compiled:
        state.model.states = torch.compile(state.model.states, dynamic=True)
    for indices in batches(state):
        batch = state.corpus.batch(indices).to(state.device)
        state.update(batch, 0.5)
        yield int((batch.labels != IGNORE).sum())


def plain(args: Namespace) -> Contestant:
    """The same without fast.py: PyTorch's dropout, and a loss that holds all logits."""
    state, _ = begin(args)
    model, optimizer = state.model.train(), state.optimizer
    for indices in batches(state):
        batch = state.corpus.batch(indices).to(state.device)
        with torch.autocast(state.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            logits = model(batch.source, batch.target)[..., :-1]
        loss = F.cross_entropy(
            logits.float().transpose(1, 2), batch.labels, label_smoothing=args.label_smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield int((batch.labels != IGNORE).sum())


def hugging_face(args: Namespace, grouped: bool) -> Contestant:
    """MarianMTModel with its own loss; as many pairs a batch as ours have on average, drawn at random or
    grouped by length as transformers.Trainer groups them."""
    from transformers import AutoModelForSeq2SeqLM
    from transformers.trainer_pt_utils import get_length_grouped_indices
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    state, tokenizer = begin(args)
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(Path(folder), state.model, tokenizer)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dropout=args.dropout).to(state.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    corpus, size = state.corpus, max(1, round(len(state.corpus) / len(state.plan(0))))
    while True:
        if grouped:
            order = get_length_grouped_indices(corpus.source.lengths.tolist(), size)
        else:
            order = torch.randperm(len(corpus)).tolist()
        for start in range(0, len(order), size):
            indices = np.array(order[start : start + size])
            source = torch.from_numpy(corpus.source.rows(indices, corpus.pad_id)).to(state.device)
            labels = torch.from_numpy(corpus.target.rows(indices, IGNORE)).to(state.device)
            with torch.autocast(state.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
                loss = model(input_ids=source, attention_mask=source != corpus.pad_id, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield int((labels != IGNORE).sum())


def matrix_products(args: Namespace) -> Contestant:
    """Nothing but the fp32 matrix products that a step of ours consists of, forward and backward, one after
    another, on matrices that are there already: what no fp32 training can be faster than."""
    state, _ = begin(args)
    state.model.eval()
    for indices in batches(state):
        batch = state.corpus.batch(indices).to(state.device)
        shapes = Shapes()
        with shapes, torch.no_grad():
            state.model.project(state.model.states(batch.source, batch.target)[batch.labels != IGNORE])
        operands = [(torch.randn(*a), torch.randn(*b), torch.randn(*a[:-1], b[-1])) for a, b in shapes.seen]
        operands = [[tensor.to(state.device) for tensor in three] for three in operands]
        yield 0  # the time up to here is no part of the products
        for a, b, gradient in operands:
            _ = a @ b, gradient @ b.mT, a.mT @ gradient
        yield int((batch.labels != IGNORE).sum())


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
    """Name -> what starts it."""

    def at(precision: str) -> Namespace:
        return Namespace(**{**vars(args), "precision": precision})

    device = pick_device(args.device)
    best = args.precision or fast.best_precision(device)
    field = {f"ours, {best}": lambda: ours(at(best))}
    if best == "bf16":
        field["ours, fp32"] = lambda: ours(at("fp32"))
    if device.type == "cuda":
        field[f"ours, {best}, torch.compile"] = lambda: ours(at(best), compiled=True)
    field["ours, fp32, without fast.py"] = lambda: plain(at("fp32"))
    field["matrix products of ours, fp32"] = lambda: matrix_products(at("fp32"))
    for precision in dict.fromkeys(["fp32", best] if device.type == "cuda" else ["fp32"]):
        field[f"Hugging Face, {precision}, grouped"] = lambda p=precision: hugging_face(at(p), grouped=True)
        field[f"Hugging Face, {precision}, random"] = lambda p=precision: hugging_face(at(p), grouped=False)
    return field


def step(contestant: Contestant, device: torch.device) -> tuple[int, float]:
    """One update -> its target tokens and its seconds."""
    while True:
        started = time.perf_counter()
        tokens = next(contestant)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if tokens:
            return tokens, time.perf_counter() - started


def peak_memory(flags: list[str], name: str) -> float:
    """The most memory a process held that made ten updates (MiB): the device's on a GPU, else its own."""
    _, args = parse(flags)
    contestant, device = contestants(args)[name](), pick_device(args.device)
    for _ in range(10):
        step(contestant, device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":  # where ru_maxrss would count what the parent process held
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS


def parse(flags: list[str]) -> tuple[Namespace, Namespace]:
    """The flags of the benchmark itself and those of training."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--rounds", type=whole(1), default=15, help="updates of each, the median of which counts"
    )
    own, rest = parser.parse_known_args(flags)
    return own, train.parse_args([*rest, "--device", own.device])


def main() -> None:
    own, args = parse(sys.argv[1:])
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise InputError("needs the package transformers; pip install -r requirements-dev.txt") from None
    device = pick_device(args.device)
    state, _ = begin(Namespace(**vars(args)))
    tokens, batches = len(state.corpus.target.ids), len(state.plan(0))
    print(
        f"{len(state.corpus):,} pairs, {tokens:,} target tokens in {batches:,} batches; "
        f"{sum(p.numel() for p in state.model.parameters()):,} parameters; {device.type}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    field = contestants(args)
    running = {name: start() for name, start in field.items()}
    rates: dict[str, list[float]] = {name: [] for name in field}
    for round_ in tqdm(range(-1, own.rounds), desc="taking turns", unit="round", leave=False):
        for name, contestant in running.items():
            scored, seconds = step(contestant, device)
            if round_ >= 0:  # the first only warms up
                rates[name].append(scored / seconds)
    medians = {name: statistics.median(of) for name, of in rates.items()}
    first = next(iter(field))
    print(f"\n{'training':34}{'tokens/s':>10}{'ratio':>8}{'of the products':>17}{'peak MiB':>10}")
    products = medians.pop("matrix products of ours, fp32")
    for name, rate in medians.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_memory, (sys.argv[1:], name))
        print(
            f"{name:34}{rate:10,.0f}{medians[first] / rate:8.1f}{products / rate:17.2f}{peak:10,.0f}",
            flush=True,
        )
    print(
        "\ntokens/s: target tokens, padding not counted; ratio: the first line's tokens/s over these; of the\n"
        "products: the time of a token over that of the fp32 matrix products of which a step of ours consists."
    )


if __name__ == "__main__":
    run(main)
