"""The end of a training run: its figures beside those of a baseline, and a warning if it has learnt too little."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encoder import MaskedLanguageModel

from .cloze import Answers, EncodedCloze, NearestSentence, accuracy, accuracy_by_kind, answer
from .common.errors import warn
from .common.files import write_text
from .common.progress import Progress
from .dataset import Data, MLMDataset

EXAMPLES = 10
PLATEAU = 0.9  # of the loss of predicting from frequencies alone


def write_report(model: MaskedLanguageModel, data: Data, progress: Progress, folder: Path) -> None:
    """Write loss_curve.png and metrics.json of a finished run, print its figures, and warn if it has learnt little."""
    from .common.plots import draw_curve  # matplotlib takes a while to import

    draw_curve(progress.curve, "hidden", folder / "loss_curve.png")
    n_parameters = sum(weight.numel() for weight in model.parameters())
    figures = progress.figures(n_parameters, "train_loss", "held_out_loss", "held_out_token_accuracy")
    compare(model, data, figures, folder / "metrics.json")
    warn_of_plateau(figures["held_out_loss"], data.train, data.held_out, model.config.vocab_size)


def compare(model: MaskedLanguageModel, data: Data, figures: dict[str, Any], path: Path) -> None:
    """Give cloze tests of training sentences and of held-out ones, if there are any, to the model and to the
    baseline, and compare.

    Write the figures of the run and those measured here to path, and print a table and examples.
    """
    recall, held_out = data.recall_tests, data.held_out_tests
    recall_clozes, held_out_clozes = ([test.cloze for test in tests] for tests in (recall, held_out))
    baseline = NearestSentence(data.text if recall or held_out else [])
    metrics = dict(figures)
    rows = [
        ("held-out text, hidden tokens, accuracy", f"{figures['held_out_token_accuracy']:.1%}", ""),
        ("held-out text, hidden tokens, loss", f"{figures['held_out_loss']:.3f}", ""),
    ]
    examples = []
    if recall:
        answers = answer(recall, model, data.tokenizer)
        share = accuracy(recall_clozes, answers.guesses)
        by_baseline = accuracy(recall_clozes, map(baseline.guess, recall_clozes))
        metrics |= {"recall_loss": answers.loss, "recall_accuracy": share}
        rows.append((f"training sentences ({len(recall):,}), key word", f"{share:.1%}", f"{by_baseline:.1%}"))
        rows.append(("training sentences, loss of the key words", f"{answers.loss:.4f}", ""))
    if held_out:
        answers = answer(held_out, model, data.tokenizer)
        by_kind = accuracy_by_kind(held_out_clozes, answers.guesses)
        baseline_by_kind = accuracy_by_kind(held_out_clozes, map(baseline.guess, held_out_clozes))
        metrics |= {"held_out_by_kind": by_kind, "baseline_by_kind": baseline_by_kind}
        for kind, share in by_kind.items():
            label = f"held-out {kind} ({sum(cloze.kind == kind for cloze in held_out_clozes):,}), key word"
            rows.append((label, f"{share:.1%}", f"{baseline_by_kind[kind]:.1%}"))
        examples = ["\nheld-out sentences, the key word hidden:", *show_examples(held_out, answers)]
    write_text(path, json.dumps(metrics, indent=2) + "\n")
    table = [f"{label:44}{ours:>12}{baselines:>18}".rstrip() for label, ours, baselines in rows]
    # printed last, as whoever reads it may have left
    head = f"\n{'':44}{'Transformer':>12}{'nearest sentence' if recall or held_out else '':>18}".rstrip(" ")
    print("\n".join([head, *table, *examples]))


def show_examples(clozes: Sequence[EncodedCloze], answers: Answers) -> list[str]:
    """Return at most EXAMPLES of the sentences, evenly spread, with the word that the model has filled in."""
    lines = []
    for i in range(0, len(clozes), -(-len(clozes) // EXAMPLES)):
        cloze, guess = clozes[i].cloze, answers.guesses[i]
        begin, end = cloze.key_span()
        verdict = "" if guess == cloze.key else f"  (was: {cloze.key})"
        lines.append(f"  {cloze.sentence[:begin]}[{guess}]{cloze.sentence[end:]}{verdict}")
    return lines


def unigram_loss(train: MLMDataset, held_out: MLMDataset, vocab_size: int) -> float:
    """Return the loss (nats per token) of predicting the tokens of the held-out text that may be hidden from their
    frequency in training alone: the plateau on which masked language models can get stuck. Counts start at one."""
    counts, seen = np.ones(vocab_size), train.sequences
    for start in range(0, len(seen.ids), 2**20):
        counts += np.bincount(seen.ids[start : start + 2**20], minlength=vocab_size)
        seen.release()
    special = list(train.special.all)  # which are never hidden
    counts[special] = 0
    ids = held_out.sequences.ids
    ids = ids[~np.isin(ids, special)]
    return float(-np.log(counts[ids] / counts.sum()).mean())


def warn_of_plateau(held_out_loss: float, train: MLMDataset, held_out: MLMDataset, vocab_size: int) -> None:
    """Warn if the model has learnt little more than how frequent each token is."""
    unigram = unigram_loss(train, held_out, vocab_size)
    if held_out_loss > PLATEAU * unigram:
        warn(
            f"the model knows little more than how frequent each token is (loss {held_out_loss:.2f}, from "
            f"frequencies alone {unigram:.2f}): train longer, or try another learning rate"
        )
