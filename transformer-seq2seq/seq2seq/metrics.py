"""Scores of a trained model: its outputs compared with the references, beside a baseline without a model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from tokenizers import Tokenizer

from transformer import Transformer

from .common.files import write_text
from .common.lines import normalize
from .common.progress import Progress
from .common.tfidf import Lookup
from .dataset import Data, short_enough
from .generation import generate_all, require_outputs
from .pairs import Pair
from .tokenizer import to_text

MAX_RECALLED = 2000  # training pairs whose prompts are answered
MAX_COMPARED = 100_000  # training pairs among which the baseline looks


@dataclass(frozen=True)
class Prompt:
    """A source with all its references, and the kind of task."""

    source: str
    references: list[str]
    kind: str = ""


def group(pairs: Sequence[Pair]) -> list[Prompt]:
    """Return the prompts of some pairs, in order. Pairs with the same source and kind become several references."""
    prompts: dict[tuple[str, str], Prompt] = {}
    for pair in pairs:
        prompt = prompts.setdefault((normalize(pair.source), pair.kind), Prompt(pair.source, [], pair.kind))
        prompt.references.append(pair.target)
    return list(prompts.values())


def answer_all(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[str]:
    """Return the greedy output for every prompt, in order, as inference.py gives it."""
    model.eval()
    ids = [encoding.ids for encoding in tokenizer.encode_batch([prompt.source for prompt in prompts])]
    found = require_outputs(generate_all(model, ids, model.config.max_length))
    return [to_text(tokenizer, hypotheses[0].ids) for hypotheses in found]


def is_right(output: str, prompt: Prompt) -> bool:
    """Return True if an output is one of the references, both normalized."""
    return normalize(output) in map(normalize, prompt.references)


def exact_match(outputs: Sequence[str], prompts: Sequence[Prompt]) -> float:
    """Return the share of outputs that are a reference."""
    return sum(map(is_right, outputs, prompts)) / max(1, len(prompts))


def exact_match_by_kind(outputs: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Return the exact match of each kind of task, in the order in which the kinds appear."""
    by_kind: dict[str, list[bool]] = {}
    for output, prompt in zip(outputs, prompts, strict=True):
        by_kind.setdefault(prompt.kind, []).append(is_right(output, prompt))
    return {kind: sum(right) / len(right) for kind, right in by_kind.items()}


def bleu_and_chrf(
    outputs: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "13a"
) -> tuple[dict[str, float | None], str]:
    """Compute corpus scores from 0 to 100 of normalized texts: BLEU (Papineni et al. 2002; cased and lowercased) and
    chrF (Popovic 2015), by sacreBLEU (Post 2018).

    references: one or more for each output. tokenize: the name of one of sacreBLEU's tokenizations. Return the scores
    by name, and sacreBLEU's signature of BLEU. If no reference has four tokens, BLEU would be 0 for any output; it is
    None then, and the signature is empty.
    """
    outputs = list(map(normalize, outputs))
    rows = [list(map(normalize, those)) for those in references]
    columns = [[row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows)))]
    scores: dict[str, float | None] = {}
    bleu, lowercased = (BLEU(lowercase=lowercase, tokenize=tokenize) for lowercase in (False, True))
    defined = any(len(bleu.tokenizer(reference).split()) >= 4 for row in rows for reference in row)
    for name, metric in (("bleu", bleu), ("bleu_lowercased", lowercased)):
        scores[name] = metric.corpus_score(outputs, columns).score if defined else None
    scores["chrf"] = CHRF().corpus_score(outputs, columns).score
    return scores, str(bleu.get_signature()) if defined else ""


class NearestPrompt:
    """A baseline that needs no Transformer: repeat the answer of the training prompt that is nearest by tf-idf. Its
    memory is bounded if the number of pairs is."""

    def __init__(self, pairs: Sequence[Pair]):
        self.targets, self.lookup = [pair.target for pair in pairs], Lookup([pair.source for pair in pairs])

    def answer(self, source: str) -> str:
        """Return the target of the nearest training prompt, or nothing if none has anything in common with it."""
        found = self.lookup.nearest(source)
        return "" if found is None else self.targets[found]


@dataclass(frozen=True)
class Scores:
    """Scores of outputs against references: exact match, also by kind of task, BLEU and chrF."""

    exact_match: float
    by_kind: dict[str, float]
    bleu: float | None
    chrf: float

    @classmethod
    def of(cls, outputs: list[str], prompts: list[Prompt]) -> "Scores":
        """Compare the outputs for some prompts with their references."""
        scores, _ = bleu_and_chrf(outputs, [prompt.references for prompt in prompts])
        by_kind = exact_match_by_kind(outputs, prompts)
        return cls(exact_match(outputs, prompts), by_kind, scores["bleu"], scores["chrf"])


@dataclass(frozen=True)
class Report:
    """The outputs for the held-out prompts, their scores and the baseline's, and the exact match on training ones."""

    held_out: list[Prompt]
    outputs: list[str]
    scores: Scores
    baseline: Scores
    n_recalled: int
    recall: float

    @classmethod
    def of(cls, model: Transformer, data: Data) -> "Report":
        """Generate for the held-out prompts and for training prompts, as far as both sides fit the model."""
        tokenizer, max_length = data.tokenizer, model.config.max_length
        seen = list(islice(data.pairs, MAX_COMPARED))
        some = {normalize(pair.source) for pair in seen[:MAX_RECALLED]}  # with all their references
        known = [pair for pair in seen if normalize(pair.source) in some]
        recalled = group(short_enough(known, tokenizer, max_length))
        held_out = group(short_enough(data.pairs.held_out, tokenizer, max_length))
        recall = exact_match(answer_all(model, tokenizer, recalled), recalled)
        outputs = answer_all(model, tokenizer, held_out)
        nearest = NearestPrompt(seen)
        baseline = Scores.of([nearest.answer(prompt.source) for prompt in held_out], held_out)
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
        """Write a table of the held-out pairs and the outputs, tab-separated, each field in one line."""
        rows = [("kind", "source", "reference", "output")]
        for prompt, output in zip(self.held_out, self.outputs, strict=True):
            rows += [(prompt.kind, prompt.source, reference, output) for reference in prompt.references]
        lines = ["\t".join(" ".join(field.split()) for field in row) for row in rows]
        write_text(path, "".join(line + "\n" for line in lines))

    def print(self) -> None:
        """Print the scores beside the baseline's, and some examples."""
        print(f"\n{'':38}{'Transformer':>12}{'nearest prompt':>16}")
        print(f"{f'training prompts ({self.n_recalled:,}), exact match':38}{self.recall:12.1%}")
        for kind, share in self.scores.by_kind.items():
            n = sum(prompt.kind == kind for prompt in self.held_out)
            label = f"held-out {kind or 'prompts'} ({n:,}), exact match"
            print(f"{label:38}{share:12.1%}{self.baseline.by_kind[kind]:16.1%}")
        if self.scores.bleu is None:
            print("held out, BLEU: no reference has four tokens (inference.py --bleu-tokenize char counts characters)")
        else:
            print(f"{'held out, BLEU':38}{self.scores.bleu:12.1f}{self.baseline.bleu:16.1f}")
        print(f"{'held out, chrF':38}{self.scores.chrf:12.1f}{self.baseline.chrf:16.1f}")
        examples = list(zip(self.held_out, self.outputs, strict=True))
        for prompt, output in examples[:: max(1, len(examples) // 8)][:8]:
            print(f"\nInput : {prompt.source}\nOutput: {output}")
            if not is_right(output, prompt):
                print(f"  (reference: {prompt.references[0]})")


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
