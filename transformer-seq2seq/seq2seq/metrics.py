"""Scores of a trained model: its outputs compared with the references, beside a baseline without a model."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from tokenizers import Tokenizer

from transformer import Transformer

from .common.files import write_text
from .common.lines import normalize
from .common.progress import Progress
from .dataset import Data, short_enough
from .generation import generate_all
from .pairs import Pair
from .tokenizer import to_text

MAX_RECALLED = 2000  # training pairs whose prompts are answered
MAX_COMPARED = 100_000  # training pairs among which the baseline looks


def answer_all(model: Transformer, tokenizer: Tokenizer, sources: list[str]) -> list[str]:
    """Return the greedy output for every source, in order, of at most twice the longest one's tokens and 20 more."""
    model.eval()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(sources)]
    longest = max(map(len, ids), default=0)
    found = generate_all(model, ids, min(model.config.max_length, 2 * longest + 20))
    return [to_text(tokenizer, hypotheses[0].ids) for hypotheses in found]


def is_reference(output: str, pair: Pair) -> bool:
    """Return True if an output is the normalized reference."""
    return output == normalize(pair.target)


def exact_match(outputs: list[str], pairs: list[Pair]) -> float:
    """Return the share of outputs that are the reference."""
    return sum(map(is_reference, outputs, pairs)) / max(1, len(pairs))


def exact_match_by_kind(outputs: list[str], pairs: list[Pair]) -> dict[str, float]:
    """Return the exact match of each kind of task, in the order in which the kinds appear."""
    by_kind: dict[str, list[bool]] = {}
    for output, pair in zip(outputs, pairs, strict=True):
        by_kind.setdefault(pair.kind, []).append(is_reference(output, pair))
    return {kind: sum(right) / len(right) for kind, right in by_kind.items()}


def bleu_and_chrf(outputs: list[str], references: list[str]) -> dict[str, float]:
    """Compute corpus scores from 0 to 100: BLEU (Papineni et al. 2002; tokenization 13a, cased and lowercased) and
    chrF (Popovic 2015), by sacrebleu (Post 2018)."""
    return {
        "bleu": BLEU().corpus_score(outputs, [references]).score,
        "bleu_lowercased": BLEU(lowercase=True).corpus_score(outputs, [references]).score,
        "chrf": CHRF().corpus_score(outputs, [references]).score,
    }


class NearestPrompt:
    """A baseline that needs no Transformer: repeat the answer of the training prompt that shares most words
    with the prompt, by the Jaccard index of their sets of words. It looks among the first MAX_COMPARED pairs, so
    that its memory is bounded."""

    def __init__(self, pairs: Iterable[Pair]):
        pairs = list(islice(pairs, MAX_COMPARED))
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
        """Return the target of the nearest training prompt."""
        words = set(re.findall(r"\w+", source.lower()))
        shared = np.zeros(len(self.targets))
        for word in words & self.postings.keys():
            shared[self.postings[word]] += 1
        return self.targets[int(np.argmax(shared / (self.sizes + len(words) - shared + 1e-9)))]


@dataclass(frozen=True)
class Scores:
    """Scores of outputs against references: exact match, also by kind of task, BLEU and chrF."""

    exact_match: float
    by_kind: dict[str, float]
    bleu: float
    chrf: float

    @classmethod
    def of(cls, outputs: list[str], pairs: list[Pair]) -> "Scores":
        """Compare the outputs for some pairs with their targets."""
        scores = bleu_and_chrf(outputs, [pair.target for pair in pairs])
        by_kind = exact_match_by_kind(outputs, pairs)
        return cls(exact_match(outputs, pairs), by_kind, scores["bleu"], scores["chrf"])


@dataclass(frozen=True)
class Report:
    """The outputs for the held-out prompts, their scores and the baseline's, and the exact match on training pairs."""

    held_out: list[Pair]
    outputs: list[str]
    scores: Scores
    baseline: Scores
    n_recalled: int
    recall: float

    @classmethod
    def of(cls, model: Transformer, data: Data) -> "Report":
        """Generate for the held-out prompts and for training prompts, as far as both sides fit the model."""
        tokenizer, max_length = data.tokenizer, model.config.max_length
        recalled = short_enough(islice(data.pairs, MAX_RECALLED), tokenizer, max_length)
        held_out = short_enough(data.pairs.held_out, tokenizer, max_length)
        recall = exact_match(answer_all(model, tokenizer, [pair.source for pair in recalled]), recalled)
        outputs = answer_all(model, tokenizer, [pair.source for pair in held_out])
        nearest = NearestPrompt(data.pairs)
        baseline = Scores.of([nearest.answer(pair.source) for pair in held_out], held_out)
        return cls(held_out, outputs, Scores.of(outputs, held_out), baseline, len(recalled), recall)

    def figures(self) -> dict[str, Any]:
        """Return the scores under their names in metrics.json."""
        figures: dict[str, Any] = {"train_exact_match": self.recall}
        for name, scores in (("held_out", self.scores), ("baseline", self.baseline)):
            figures |= {f"{name}_{score}": getattr(scores, score) for score in ("exact_match", "bleu", "chrf")}
        if list(self.scores.by_kind) != [""]:
            figures |= {"held_out_by_kind": self.scores.by_kind, "baseline_by_kind": self.baseline.by_kind}
        return figures

    def write_outputs(self, path: Path) -> None:
        """Write a table of the held-out pairs and the outputs, tab-separated."""
        rows = [("kind", "source", "reference", "output")]
        rows += [
            (pair.kind, pair.source, pair.target, output)
            for pair, output in zip(self.held_out, self.outputs, strict=True)
        ]
        write_text(path, "".join("\t".join(row) + "\n" for row in rows))

    def print(self) -> None:
        """Print the scores beside the baseline's, and some examples."""
        print(f"\n{'':38}{'Transformer':>12}{'nearest prompt':>16}")
        print(f"{f'training pairs ({self.n_recalled:,}), exact match':38}{self.recall:12.1%}")
        for kind, share in self.scores.by_kind.items():
            n = sum(pair.kind == kind for pair in self.held_out)
            label = f"held-out {kind or 'pairs'} ({n:,}), exact match"
            print(f"{label:38}{share:12.1%}{self.baseline.by_kind[kind]:16.1%}")
        print(f"{'held out, BLEU':38}{self.scores.bleu:12.1f}{self.baseline.bleu:16.1f}")
        print(f"{'held out, chrF':38}{self.scores.chrf:12.1f}{self.baseline.chrf:16.1f}")
        examples = list(zip(self.held_out, self.outputs, strict=True))
        for pair, output in examples[:: max(1, len(examples) // 8)][:8]:
            print(f"\nInput : {pair.source}\nOutput: {output}")
            if not is_reference(output, pair):
                print(f"  (reference: {pair.target})")


def write_report(model: Transformer, data: Data, progress: Progress, folder: Path) -> None:
    """Write loss_curve.png, metrics.json and outputs.tsv of a finished run, and print its scores."""
    from .common.plots import draw_curve  # matplotlib takes a while to import

    draw_curve(progress.curve, "target", folder / "loss_curve.png")
    report = Report.of(model, data)
    n_parameters = sum(weight.numel() for weight in model.parameters())
    figures = progress.figures(n_parameters, "train_loss", "held_out_loss") | report.figures()
    write_text(folder / "metrics.json", json.dumps(figures, indent=2) + "\n")
    report.write_outputs(folder / "outputs.tsv")
    report.print()
