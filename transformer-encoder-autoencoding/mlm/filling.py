"""Predict hidden tokens: the [MASK]s of sentences, or every token of a sentence in turn. Sentences are token ids
here; filler.py makes them from text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoder import MaskedLanguageModel

from .common.batching import batch_bounds
from .common.errors import InputError
from .common.token_text import show_token
from .tokenizer import SpecialIds

BATCH_TOKENS = 4096  # in one forward pass, padding included


@dataclass(frozen=True)
class Query:
    """The ids of a sentence, and the positions in it, in ascending order, whose tokens are to be predicted."""

    ids: list[int]
    positions: list[int]


@torch.inference_mode()
def predict(
    queries: Sequence[Query], model: MaskedLanguageModel, special: SpecialIds, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Predict what stands at the positions of each query, those of like length in one batch.

    Yield each query's index and its log-probabilities (N, V), N being the number of its positions; the shortest
    queries come first.
    """
    lengths = np.array([len(query.ids) for query in queries], dtype=int)
    order = lengths.argsort(kind="stable")
    for start, end in pairwise(batch_bounds(lengths[order], BATCH_TOKENS)):
        batch = order[start:end].tolist()
        ids, hidden = collate([queries[i] for i in batch], special.pad)
        log_probs = model(ids.to(device), hidden.to(device)).log_softmax(dim=-1)  # (all positions, V)
        if not log_probs.isfinite().all():
            raise InputError("the model outputs NaN or infinity: its weights are damaged; download it again")
        yield from zip(batch, log_probs.split([len(queries[i].positions) for i in batch]), strict=True)


def collate(queries: Sequence[Query], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return the ids of queries, padded, and True at their positions: both (B, S)."""
    ids = pad_sequence([torch.tensor(query.ids) for query in queries], batch_first=True, padding_value=pad_id)
    places = [(row, position) for row, query in enumerate(queries) for position in query.positions]
    hidden = torch.zeros(ids.shape, dtype=torch.bool)
    hidden[tuple(torch.tensor(places).T)] = True
    return ids, hidden


def hide_each(ids: list[int], special: SpecialIds, words: Sequence[int | None] = ()) -> list[Query]:
    """Return a query for every token of a sentence but [CLS] and [SEP]: the sentence with that token hidden. words:
    the word that each token is of; the later tokens of the word are hidden as well."""
    queries = []
    for i, token in enumerate(ids):
        if token not in (special.cls, special.sep):
            end = i + 1
            while end < len(words) and words[end] == words[i]:
                end += 1
            queries.append(Query([*ids[:i], *[special.mask] * (end - i), *ids[end:]], [i]))
    return queries


def cut(sentence: Encoding, max_length: int) -> list[tuple[list[int], list[int | None]]]:
    """Return the ids and words of a sentence or, if it has more than max_length tokens, of pieces of nearly equal
    length, each between [CLS] and [SEP]."""
    (cls, *ids, sep), (_, *words, _) = sentence.ids, sentence.word_ids
    count = -(-len(ids) // (max_length - 2))
    bounds = [len(ids) * i // count for i in range(count + 1)]
    return [([cls, *ids[a:b], sep], [None, *words[a:b], None]) for a, b in pairwise(bounds)]


def ids_without_token(tokenizer: Tokenizer, model: MaskedLanguageModel) -> list[int]:
    """Return the ids of a model that its tokenizer does not have: many vocabularies are padded to a round size."""
    return sorted(set(range(model.config.vocab_size)) - set(tokenizer.get_vocab().values()))


def likeliest(log_probs: Tensor, k: int, absent: list[int]) -> list[list[tuple[int, float]]]:
    """Return for each row of log_probs (N, V) its k likeliest ids but those that are absent, with their
    probabilities."""
    probabilities = log_probs.exp()
    probabilities[:, absent] = -1
    best = probabilities.topk(min(k, probabilities.size(1) - len(absent)))  # (N, k)
    return [list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def fill(
    sentences: Sequence[list[int]],
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    top_k: int,
    device: torch.device,
) -> list[list[list[tuple[int, float]]]]:
    """Predict every [MASK], given its sentence with all the [MASK]s in it.

    Return for each sentence, and each [MASK] in it, the top_k likeliest tokens with their probabilities, the likeliest
    first.
    """
    special = SpecialIds.of(tokenizer)
    queries = [Query(ids, [i for i, token in enumerate(ids) if token == special.mask]) for ids in sentences]
    absent = ids_without_token(tokenizer, model)
    candidates: list[list[list[tuple[int, float]]]] = [[] for _ in sentences]
    for i, log_probs in predict(queries, model, special, device):
        candidates[i] = likeliest(log_probs, top_k, absent)
    return candidates


def score(
    sentences: Sequence[Encoding], model: MaskedLanguageModel, tokenizer: Tokenizer, device: torch.device
) -> list[list[dict]]:
    """Hide one token after the other, and measure how likely it was (Salazar et al. 2020, section 2). The later tokens
    of its word are hidden too, as they give it away (Kauf and Ivanova 2023, "PLL-word-l2r"). A sentence that is too
    long for the model is read in pieces.

    Return for each sentence, and each token in it but [CLS] and [SEP], {"token": str, "surprisal": -log p(token | all
    that is not hidden) in nats}; of an unknown word, [UNK], the surprisal is None: it was never a label in training.
    """
    special = SpecialIds.of(tokenizer)
    hidden, targets = [], []
    for i, sentence in enumerate(sentences):
        for ids, words in cut(sentence, model.config.max_length):
            queries = hide_each(ids, special, words)
            hidden += [(i, query) for query in queries]
            targets += [ids[query.positions[0]] for query in queries]
    known = [i for i, token in enumerate(targets) if token != special.unk]
    surprisals: list[float | None] = [None] * len(hidden)
    for q, log_probs in predict([hidden[i][1] for i in known], model, special, device):
        surprisals[known[q]] = -log_probs[0, targets[known[q]]].item()
    scores: list[list[dict]] = [[] for _ in sentences]
    for (i, _), token, surprisal in zip(hidden, targets, surprisals, strict=True):
        scores[i].append({"token": show_token(tokenizer, token), "surprisal": surprisal})
    return scores


def known_surprisals(tokens: Sequence[dict]) -> list[float]:
    """Return the surprisals of the tokens of a sentence, as score returns them, but for the unknown ones."""
    return [token["surprisal"] for token in tokens if token["surprisal"] is not None]
