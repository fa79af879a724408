"""mlm.contestants"""

import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from . import bert as pretrained
from .common.errors import InputError
from .filling import Sentence, fill, score
from .tokenizer import MASK

FILLED, SCORED = 256, 16  # sentences: to score one, the model reads it as often as it has tokens


TOP_K = 5


Answers = list[tuple[str, float]]  # for each sentence the likeliest token and its probability


Engine = Callable[[list[str]], Answers]  # sentences with one [MASK] each -> their answers


def hide(words: list[str], i: int) -> str:
    """The sentence with its word i hidden."""
    return " ".join([*words[:i], MASK, *words[i + 1 :]])


def pipelines(directory: Path, device: torch.device) -> list[dict[str, Engine]]:
    """transformers' fill-mask pipeline, as it is used without further thought and in batches: for TOP_K
    answers to each sentence, and for one."""
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    pipe = pipeline("fill-mask", str(directory), device=device)

    def in_batches(size: int, top_k: int) -> Engine:
        return lambda masked: [
            (found[0]["token_str"].strip(), found[0]["score"]) for found in pipe(masked, batch_size=size, top_k=top_k)
        ]

    sizes = 1, 16, 64
    return [{f"Hugging Face, {n} at a time": in_batches(n, top_k) for n in sizes} for top_k in (TOP_K, 1)]


def agreement(mine: Answers, other: Answers) -> str:
    """How many answers are the same, and how far their probabilities are apart."""
    same = [(a[1], b[1]) for a, b in zip(mine, other, strict=True) if a[0] == b[0]]
    apart = max((abs(a - b) for a, b in same), default=0.0)
    return f"{len(same)} of {len(mine)}, probabilities within {apart:.0e}"


def main(directory: Path, texts: list[str], device: torch.device, rounds: int) -> None:
    """Print a table: sentences filled, and tokens scored, per second, medians of the rounds.

    The pipeline has no scoring: it is given the sentence once for each of its words, with that word hidden.
    """
    model, tokenizer = pretrained.load(directory, device)  # reports what is wrong with the directory
    short = (
        text.split()
        for text in texts
        if MASK not in text and len(tokenizer.encode(text)) <= model.config.max_length - 8
    )
    if not (rows := list(islice(short, FILLED))):
        raise InputError(f"no sentence of the input is short enough for the model, and without {MASK}")
    masked = [hide(rows[i % len(rows)], i % len(rows[i % len(rows)])) for i in range(FILLED)]
    scored = rows[:SCORED]
    hidden = [hide(words, i) for words in scored for i in range(len(words))]

    def ours_fills() -> tuple[int, Answers]:
        found = fill([Sentence(text, "") for text in masked], model, tokenizer, TOP_K, device)
        best = [result["masks"][0][0] for result in found]
        return len(masked), [(one["token"], one["probability"]) for one in best]

    def ours_scores() -> tuple[int, Answers]:
        found = score([Sentence(" ".join(words), "") for words in scored], model, tokenizer, device)
        return sum(len(result["tokens"]) for result in found), []

    fills, scores = pipelines(directory, device)
    tasks = {
        "filling: sentences": {
            "ours": ours_fills,
            **{name: lambda engine=engine: (len(masked), engine(masked)) for name, engine in fills.items()},
        },
        "scoring: hidden tokens": {
            "ours": ours_scores,
            **{name: lambda engine=engine: (len(hidden), engine(hidden)) for name, engine in scores.items()},
        },
    }
    for task, contestants in tasks.items():
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        answers: dict[str, Answers] = {}
        for round_ in tqdm(range(-1, rounds), desc=task, unit="round", leave=False):
            for name, contestant in contestants.items():
                started = time.perf_counter()
                done, answers[name] = contestant()
                if round_ >= 0:  # the first only warms up
                    rates[name].append(done / (time.perf_counter() - started))
        medians = {name: statistics.median(of) for name, of in rates.items()}
        same = "   same answer as ours" if answers["ours"] else ""
        print(f"\n{task + ' per second':34}{'rate':>10}{'ratio':>8}{same}")
        for name, rate in medians.items():
            same = agreement(answers["ours"], answers[name]) if answers["ours"] and name != "ours" else ""
            print(f"{name:34}{rate:10,.0f}{medians['ours'] / rate:8.1f}   {same}".rstrip())
    print("\nratio: how many times faster ours is.")
