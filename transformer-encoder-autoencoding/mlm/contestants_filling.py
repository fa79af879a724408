"""What benchmark.py compares in filling masks and scoring: our MaskFiller and Hugging Face's fill-mask pipeline."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from .common.errors import InputError
from .filler import TOP_K, MaskFiller
from .tokenizer import MASK

N_FILLED, N_SCORED = 256, 16  # sentences: to score one, the model reads it as often as it has tokens

Answers = list[tuple[str, float]]  # for each sentence the likeliest token and its probability
Turn = Callable[[], tuple[int, Answers]]  # -> the number of sentences or tokens done, and the answers


def hide(words: list[str], i: int) -> str:
    """Return the sentence with its word i hidden."""
    return " ".join([*words[:i], MASK, *words[i + 1 :]])


def pipelines(directory: Path, device: torch.device, sentences: list[str], top_k: int) -> dict[str, Turn]:
    """Return turns of transformers' fill-mask pipeline: as it is used without further thought, and in batches."""
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    pipe = pipeline("fill-mask", str(directory), device=device)

    def turn(size: int) -> tuple[int, Answers]:
        found = pipe(sentences, batch_size=size, top_k=top_k)
        return len(sentences), [(best[0]["token_str"].strip(), best[0]["score"]) for best in found]

    return {f"Hugging Face, {size} at a time": partial(turn, size) for size in (1, 16, 64)}


def filling_tasks(filler: MaskFiller, directory: Path, texts: Sequence[str]) -> dict[str, dict[str, Turn]]:
    """Return the turns of all contestants for each task: filling a [MASK] in sentences, and scoring sentences.

    The pipeline has no scoring: it is given the sentence once for each of its words, with that word hidden.
    """
    tokenizer, longest = filler.tokenizer, filler.model.config.max_length - 8
    short = (text.split() for text in texts if MASK not in text and len(tokenizer.encode(text)) <= longest)
    if not (rows := list(islice(short, N_FILLED))):
        raise InputError(f"no sentence is short enough for the model, and without {MASK}; give it others", "input")
    masked = [hide(rows[i % len(rows)], i % len(rows[i % len(rows)])) for i in range(N_FILLED)]
    scored = [" ".join(words) for words in rows[:N_SCORED]]
    hidden = [hide(words, i) for words in rows[:N_SCORED] for i in range(len(words))]

    def ours_fills() -> tuple[int, Answers]:
        best = [masks[0][0] for masks in filler(masked, TOP_K)]
        return len(masked), [(one["token"], one["probability"]) for one in best]

    def ours_scores() -> tuple[int, Answers]:
        return sum(len(result["tokens"]) for result in filler.score(scored)), []

    theirs = partial(pipelines, directory, filler.device)
    return {
        "filling: sentences": {"ours": ours_fills, **theirs(masked, TOP_K)},
        "scoring: hidden tokens": {"ours": ours_scores, **theirs(hidden, 1)},
    }


def agreement(mine: Answers, other: Answers) -> str:
    """Say how many answers are the same, and how far the probabilities of those are apart."""
    same = [(a[1], b[1]) for a, b in zip(mine, other, strict=True) if a[0] == b[0]]
    apart = max((abs(a - b) for a, b in same), default=0.0)
    return f"{len(same)} of {len(mine)}, probabilities within {apart:.0e}"
