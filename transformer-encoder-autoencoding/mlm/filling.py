"""mlm.filling"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from encoder import MaskedLanguageModel

from .common.errors import InputError, warn
from .tokenizer import MASK, SpecialIds

BATCH_TOKENS = 4096  # that the model is given at a time, padding included


@dataclass(frozen=True)
class Sentence:
    """What the user gave, and where: "sentence 2" or "standard input, line 7"."""

    text: str
    place: str


class Mistake(InputError):
    """What is wrong with one sentence of several; those before its index are sound."""

    def __init__(self, index: int, sentence: Sentence, reason: str):
        super().__init__(f"{sentence.place}: {reason}")
        self.index = index


def encode(
    sentences: list[Sentence], model: MaskedLanguageModel, tokenizer: Tokenizer, to_fill: bool = False
) -> list[Encoding]:
    """The ids of sentences, of which each must hold a [MASK] if it is to_fill.

    Raises Mistake where one is empty, too long for the model, or without a [MASK] that is needed.
    """
    for i, sentence in enumerate(sentences):
        try:
            sentence.text.encode()
        except UnicodeEncodeError:  # how Python holds bytes of the command line that are not UTF-8
            raise Mistake(i, sentence, "the sentence is not UTF-8 text; write it in UTF-8") from None
    special, limit = SpecialIds.of(tokenizer), model.config.max_length
    encodings = tokenizer.encode_batch([sentence.text for sentence in sentences])
    unknown = []
    for i, (sentence, encoding) in enumerate(zip(sentences, encodings, strict=True)):
        if all(token in (special.cls, special.sep, special.pad) for token in encoding.ids):
            raise Mistake(i, sentence, "the sentence is empty; give one with words")
        if len(encoding) > limit:
            tokens = f"the sentence has {len(encoding)} tokens, the model takes {limit}"
            raise Mistake(i, sentence, f"{tokens}; shorten it")
        if to_fill and (reason := wrong_masks(sentence.text, encoding.ids.count(special.mask))):
            raise Mistake(i, sentence, reason)
        for (start, end), token in zip(encoding.offsets, encoding.ids, strict=True):
            if token == special.unk:
                unknown.append(sentence.text[start:end])
    if unknown:
        words = [word if len(word) < 40 else f"{word[:39]}…" for word in dict.fromkeys(unknown)]
        more = f" and {len(words) - 5} more" if len(words) > 5 else ""
        warn(f"unknown to the model, which sees [UNK] for it: {', '.join(words[:5])}{more}")
    return encodings


def wrong_masks(text: str, seen: int) -> str:
    """Why a sentence in which the tokenizer has seen so many [MASK]s cannot be filled; "" if it can."""
    if not seen:
        shown = text if len(text) < 80 else f"{text[:79]}…"
        return f"no {MASK} in {shown!r}; write {MASK} for the word to fill in, or use --score"
    if seen != text.count(MASK):
        return f"{text.count(MASK)} times {MASK}, of which the tokenizer sees {seen}; put spaces around them"
    return ""


@dataclass(frozen=True)
class Question:
    """The ids of a sentence, and the positions in it whose tokens the model is asked for."""

    ids: list[int]
    positions: list[int]


@torch.inference_mode()
def ask(
    questions: list[Question], model: MaskedLanguageModel, special: SpecialIds, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Put the questions to the model, those of like length together.

    Yields, in another order, the index of every question with its log-probabilities (positions, V).
    Raises InputError where they are no numbers, as of weights that are far too large.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].ids))
    while order:
        size = 1
        while size < len(order) and len(questions[order[size]].ids) * (size + 1) <= BATCH_TOKENS:
            size += 1
        batch, order = order[:size], order[size:]
        length = len(questions[batch[-1]].ids)
        ids = torch.full((len(batch), length), special.pad)
        hidden = torch.zeros(len(batch), length, dtype=torch.bool)
        for row, i in enumerate(batch):
            ids[row, : len(questions[i].ids)] = torch.tensor(questions[i].ids)
            hidden[row, questions[i].positions] = True
        log_probs = model(ids.to(device), hidden.to(device)).log_softmax(dim=-1)  # (N, V)
        if not log_probs.isfinite().all():
            raise InputError("the model answers with what is no number, so its weights are damaged; get it anew")
        counts = [len(questions[i].positions) for i in batch]
        yield from zip(batch, log_probs.split(counts), strict=True)


def hide_each(ids: list[int], special: SpecialIds) -> list[Question]:
    """A question for every token of a sentence but [CLS] and [SEP]: the sentence with that one hidden."""
    return [
        Question([*ids[:i], special.mask, *ids[i + 1 :]], [i])
        for i, token in enumerate(ids)
        if token not in (special.cls, special.sep)
    ]


def to_word(tokenizer: Tokenizer, token_id: int) -> str:
    """One token as it reads in a sentence, control characters replaced."""
    text = tokenizer.decode([token_id], skip_special_tokens=False).strip()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text)


def fill(
    sentences: list[Sentence],
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    top_k: int,
    device: torch.device,
) -> list[dict]:
    """The likeliest tokens for every [MASK], each given the sentence with all its [MASK]s.

    Returns for each sentence {"input": the sentence, "filled": the sentence with the likeliest token at every
    [MASK], "masks": for each [MASK] a list of {"token": str, "probability": float}}.
    Raises Mistake where there is no [MASK].
    """
    special, questions = SpecialIds.of(tokenizer), []
    for encoding in encode(sentences, model, tokenizer, to_fill=True):
        positions = [i for i, token in enumerate(encoding.ids) if token == special.mask]
        questions.append(Question(encoding.ids, positions))
    results: list[dict] = [{} for _ in sentences]
    known = 1 + max(tokenizer.get_vocab().values())  # a model may have room for more
    for i, log_probs in ask(questions, model, special, device):
        best = log_probs[:, :known].exp().topk(min(top_k, known))  # (N, k)
        masks = [
            [{"token": to_word(tokenizer, t), "probability": p} for t, p in zip(tokens, probs, strict=True)]
            for tokens, probs in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        first, *pieces = sentences[i].text.split(MASK)
        filled = first + "".join(m[0]["token"] + piece for m, piece in zip(masks, pieces, strict=True))
        results[i] = {"input": sentences[i].text, "filled": filled, "masks": masks}
    return results


def score(
    sentences: list[Sentence], model: MaskedLanguageModel, tokenizer: Tokenizer, device: torch.device
) -> list[dict]:
    """Hide one token after the other and ask how likely it was (Salazar et al. 2020, section 2).

        pseudo-perplexity = exp(-1/n sum_t log p(token_t | all the others))

    Returns for each sentence {"input": the sentence, "pseudo_perplexity": float,
    "tokens": [{"token": str, "surprisal": -log p in nats}, ...]}.
    Raises Mistake where one holds a [MASK].
    """
    special = SpecialIds.of(tokenizer)
    encodings = encode(sentences, model, tokenizer)
    for i, encoding in enumerate(encodings):
        if special.mask in encoding.ids:
            reason = f"holds {MASK}, which is no word to score; leave out --score to fill it"
            raise Mistake(i, sentences[i], reason)
    questions, asked = [], []
    for i, encoding in enumerate(encodings):
        for question in hide_each(encoding.ids, special):
            questions.append(question)
            asked.append((i, encoding.ids[question.positions[0]]))
    surprisals = [0.0] * len(questions)
    for q, log_probs in ask(questions, model, special, device):
        surprisals[q] = -log_probs[0, asked[q][1]].item()
    results = [{"input": sentence.text, "pseudo_perplexity": 0.0, "tokens": []} for sentence in sentences]
    for (i, token), surprisal in zip(asked, surprisals, strict=True):
        results[i]["tokens"].append({"token": to_word(tokenizer, token), "surprisal": surprisal})
    for result in results:
        mean = sum(token["surprisal"] for token in result["tokens"]) / len(result["tokens"])
        result["pseudo_perplexity"] = math.exp(min(700.0, mean))
    return results
