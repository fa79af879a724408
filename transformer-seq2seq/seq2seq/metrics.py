"""seq2seq.metrics"""

import json
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from tokenizers import Tokenizer

from decoding import generate_all
from transformer import Transformer

from .common.files import write_text
from .common.lines import plain
from .dataset import short_enough
from .pairs import Pair
from .tokenizer import to_text

MOST_COMPARED = 100_000  # training pairs among which the baseline looks


def answer_all(model: Transformer, tokenizer: Tokenizer, sources: list[str]) -> list[str]:
    """The greedy output for every source, in order, of at most twice the longest one's tokens and 20 more."""
    model.eval()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(sources)]
    longest = max(map(len, ids), default=0)
    found = generate_all(model, ids, min(model.config.max_length, 2 * longest + 20))
    return [to_text(tokenizer, hypotheses[0].ids) for hypotheses in found]


def is_reference(output: str, pair: Pair) -> bool:
    """Whether an output is the reference to the letter, as plain text."""
    return output == plain(pair.target)


def exact_match(outputs: list[str], pairs: list[Pair]) -> float:
    """The share of outputs that are the reference."""
    return sum(map(is_reference, outputs, pairs)) / max(1, len(pairs))


def exact_match_by_kind(outputs: list[str], pairs: list[Pair]) -> dict[str, float]:
    """The exact match of each kind of task, in the order in which the kinds appear."""
    by_kind: dict[str, list[bool]] = {}
    for output, pair in zip(outputs, pairs, strict=True):
        by_kind.setdefault(pair.kind, []).append(is_reference(output, pair))
    return {kind: sum(right) / len(right) for kind, right in by_kind.items()}


def bleu_and_chrf(outputs: list[str], references: list[str]) -> dict[str, float]:
    """Corpus scores from 0 to 100: BLEU (Papineni et al. 2002; tokenization 13a, cased and lowercased) and
    chrF (Popovic 2015), as sacrebleu computes them (Post 2018)."""
    return {
        "bleu": BLEU().corpus_score(outputs, [references]).score,
        "bleu_lowercased": BLEU(lowercase=True).corpus_score(outputs, [references]).score,
        "chrf": CHRF().corpus_score(outputs, [references]).score,
    }


class NearestPrompt:
    """A baseline that needs no Transformer: repeat the answer of the training prompt that shares most words
    with the one asked, by the Jaccard index of their sets of words. It looks among the first MOST_COMPARED
    pairs: its memory has bounds."""

    def __init__(self, pairs: Iterable[Pair]):
        pairs = list(islice(pairs, MOST_COMPARED))
        self.targets = [pair.target for pair in pairs]
        self.sizes = np.zeros(len(pairs))
        postings: dict[str, list[int]] = {}
        for i, pair in enumerate(pairs):
            words = set(re.findall(r"\w+", pair.source.lower()))
            self.sizes[i] = len(words)
            for word in words:
                postings.setdefault(word, []).append(i)
        self.postings = {word: np.array(indices) for word, indices in postings.items()}

    def answer(self, source: str) -> str:
        """The target of the nearest training prompt."""
        words = set(re.findall(r"\w+", source.lower()))
        shared = np.zeros(len(self.targets))
        for word in words & self.postings.keys():
            shared[self.postings[word]] += 1
        return self.targets[int(np.argmax(shared / (self.sizes + len(words) - shared + 1e-9)))]


def report(
    model: Transformer,
    tokenizer: Tokenizer,
    pairs: Iterable[Pair],
    held_out: list[Pair],
    figures: dict,
    folder: Path,
) -> None:
    """Generate for the held-out prompts and for training prompts (2,000 at most), those that are short enough
    for the model, and compare.

    Writes folder/metrics.json (the given figures and those measured here) and folder/outputs.tsv, and
    prints a table and examples.
    """
    recalled = short_enough(islice(pairs, 2000), tokenizer, model.config.max_length)
    held_out = short_enough(held_out, tokenizer, model.config.max_length)
    recall = exact_match(answer_all(model, tokenizer, [pair.source for pair in recalled]), recalled)
    outputs = answer_all(model, tokenizer, [pair.source for pair in held_out])
    nearest = NearestPrompt(pairs)
    baseline = [nearest.answer(pair.source) for pair in held_out]
    scores = bleu_and_chrf(outputs, [pair.target for pair in held_out])
    baseline_scores = bleu_and_chrf(baseline, [pair.target for pair in held_out])
    metrics = figures | {
        "train_exact_match": recall,
        "held_out_exact_match": exact_match(outputs, held_out),
        "held_out_bleu": scores["bleu"],
        "held_out_chrf": scores["chrf"],
        "baseline_exact_match": exact_match(baseline, held_out),
        "baseline_bleu": baseline_scores["bleu"],
        "baseline_chrf": baseline_scores["chrf"],
    }
    by_kind, baseline_by_kind = (
        exact_match_by_kind(outputs, held_out),
        exact_match_by_kind(baseline, held_out),
    )
    if list(by_kind) != [""]:
        metrics |= {"held_out_by_kind": by_kind, "baseline_by_kind": baseline_by_kind}
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    rows = [("kind", "source", "reference", "output")]
    rows += [(pair.kind, pair.source, pair.target, output) for pair, output in zip(held_out, outputs, strict=True)]
    write_text(folder / "outputs.tsv", "".join("\t".join(row) + "\n" for row in rows))

    print(f"\n{'':38}{'Transformer':>12}{'nearest prompt':>16}")
    print(f"{f'training pairs ({len(recalled):,}), exact match':38}{recall:12.1%}")
    for kind, share in by_kind.items():
        n = sum(pair.kind == kind for pair in held_out)
        label = f"held-out {kind or 'pairs'} ({n:,}), exact match"
        print(f"{label:38}{share:12.1%}{baseline_by_kind[kind]:16.1%}")
    for name in ("bleu", "chrf"):
        label = f"held out, {'BLEU' if name == 'bleu' else 'chrF'}"
        print(f"{label:38}{scores[name]:12.1f}{baseline_scores[name]:16.1f}")
    for pair, output in list(zip(held_out, outputs, strict=True))[:: max(1, len(held_out) // 8)][:8]:
        print(f"\nInput : {pair.source}\nOutput: {output}")
        if not is_reference(output, pair):
            print(f"  (reference: {pair.target})")
