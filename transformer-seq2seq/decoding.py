"""From a trained model to text: greedy decoding, beam search and sampling, all in one loop.

A beam of n hypotheses grows by one token a step. Greedy decoding is a beam of one; sampling is a beam of
one that draws its token instead of taking the likeliest. The decoder computes each position once and
keeps its keys and values in a cache.

Legend: B sentences still being decoded, n beam width, V vocabulary, t tokens generated so far, M the most
that may be generated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from transformer import Transformer

# (log-probabilities of the next token (B, n, V), summed log-probabilities so far (B, n))
# -> the candidates to go on with, best first: their sums, the beams they extend, their tokens (B, c) each
Pick = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Hypothesis:
    """One output: its token ids, without start and </s>; the sum of the log-probabilities of its tokens,
    </s> included (nats); and that sum over length**length_penalty, by which hypotheses are ranked."""

    ids: list[int]
    log_probability: float
    score: float


def likeliest(log_probs: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of beam search: the best 2 n of all n V extensions, so that n are left to go on with
    even if n of them end; for greedy decoding (n = 1) the best one."""
    n, vocab_size = log_probs.shape[1:]
    count = min(2 * n, n * vocab_size) if n > 1 else 1
    totals, flat = (sums[:, :, None] + log_probs).flatten(1).topk(count)  # (B, c)
    return totals, flat // vocab_size, flat % vocab_size


@dataclass
class Sampler:
    """Draws the next token (n = 1) from the model's distribution, sharpened and cut.

    temperature divides the logits; of what results, top_k keeps the k likeliest tokens (0: all), and
    top_p (Holtzman et al. 2020, section 3.1, "nucleus sampling") the likeliest ones whose probabilities
    first add up to top_p. The sums stay those of the model itself.
    """

    generator: torch.Generator
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, log_probs: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probs, tokens = (log_probs[:, 0] / self.temperature).softmax(dim=-1).sort(descending=True)  # (B, V)
        if self.top_k:
            probs[:, self.top_k :] = 0
            probs /= probs.sum(dim=-1, keepdim=True)
        probs[probs.cumsum(dim=-1) - probs >= self.top_p] = 0  # keeps a token if those before it fall short
        drawn = torch.multinomial(probs.cpu(), 1, generator=self.generator).to(probs.device)  # (B, 1)
        token = tokens.gather(1, drawn)
        return sums + log_probs[:, 0].gather(1, token), torch.zeros_like(token), token


@torch.inference_mode()
def generate(
    model: Transformer,
    source: Tensor,
    max_length: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    pick: Pick = likeliest,
) -> list[list[Hypothesis]]:
    """Decode a batch: greedily (beam 1), by beam search (Graves 2012; ranked as in Wu et al. 2016, section
    7, with length**length_penalty as the divisor), or with a Sampler as pick.

    source (B, S) -> for each sentence at most `beam` hypotheses of at most max_length tokens, best first.
    A sentence is done when it has `beam` finished hypotheses and none of the unfinished, were it to end
    now, would rank before the last of them; it then leaves the batch.
    """
    config, device, n = model.config, source.device, beam
    memory, _ = model.encode(source)
    cache = model.cache(source, memory)
    cache.select(torch.arange(len(source), device=device).repeat_interleave(n))  # rows are B n from here on

    sentence = torch.arange(len(source), device=device)  # (B,) which sentence each entry of the batch is
    tokens = torch.full((len(source), n, max_length + 1), config.pad_id, device=device)  # starts with <pad>
    sums = torch.full((len(source), n), -math.inf, device=device)  # log-probabilities of the unfinished
    sums[:, 0] = 0  # all beams are still the same: go on from one
    pool = Pool.empty(len(source), n, max_length, device)
    results: list[list[Hypothesis]] = [[] for _ in range(len(source))]

    for t in range(1, max_length + 1):
        logits = model.decode(tokens[:, :, t - 1].reshape(-1, 1), cache)[:, -1].float()  # (B n, V)
        log_probs = logits.log_softmax(dim=-1)
        log_probs[:, config.pad_id] = -math.inf
        totals, parents, next_tokens = pick(log_probs.unflatten(0, (-1, n)), sums)  # (B, c) each
        candidates = take(tokens, parents)  # (B, c, M + 1)
        candidates[:, :, t] = next_tokens

        ends = (next_tokens == config.eos_id) | (t == max_length)
        pool.add(candidates[:, :n, 1:], totals[:, :n].masked_fill(~ends[:, :n], -math.inf), t, length_penalty)
        open_totals = totals.masked_fill(ends, -math.inf)
        order = open_totals.sort(dim=1, descending=True, stable=True).indices[:, :n]  # (B, n)
        sums, tokens = open_totals.gather(1, order), take(candidates, order)
        parents = parents.gather(1, order)

        done = pool.scores[:, -1] >= sums[:, 0] / t**length_penalty
        for b in done.nonzero().flatten().tolist():
            results[sentence[b]] = pool.hypotheses(b, config.eos_id)
        alive = (~done).nonzero().flatten()  # (B,) of the next step
        if not len(alive):
            break
        cache.select((alive[:, None] * n + parents[alive]).flatten())
        sentence, tokens, sums = sentence[alive], tokens[alive], sums[alive]
        pool = Pool(pool.tokens[alive], pool.sums[alive], pool.scores[alive])
    return results


def generate_all(
    model: Transformer,
    sources: list[list[int]],
    max_length: int,
    batch_size: int = 64,
    beam: int = 1,
    length_penalty: float = 1.0,
    pick: Pick = likeliest,
) -> list[list[Hypothesis]]:
    """What generate gives for any number of sources, each ending in </s>, in their order. Those of like
    length are decoded together, batch_size at a time."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True)
    results: list[list[Hypothesis]] = [[] for _ in sources]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        source = torch.full((len(rows), len(sources[rows[0]])), model.config.pad_id)
        for row, i in enumerate(rows):
            source[row, : len(sources[i])] = torch.tensor(sources[i])
        source = source.to(model.output_bias.device)
        for i, found in zip(
            rows, generate(model, source, max_length, beam, length_penalty, pick), strict=True
        ):
            results[i] = found
    return results


@dataclass
class Pool:
    """The best n finished hypotheses of each sentence, best first: tokens (B, n, M), padded; the sums of
    their log-probabilities and the scores (B, n), -inf where there is none yet."""

    tokens: Tensor
    sums: Tensor
    scores: Tensor

    @classmethod
    def empty(cls, sentences: int, n: int, max_length: int, device: torch.device) -> "Pool":
        nothing = torch.full((sentences, n), -math.inf, device=device)
        return cls(torch.zeros(sentences, n, max_length, dtype=torch.int64, device=device), nothing, nothing)

    def add(self, tokens: Tensor, sums: Tensor, length: int, length_penalty: float) -> None:
        """Take in tokens (B, c, M) with sums (B, c), -inf for those that have not finished."""
        scores = torch.cat([self.scores, sums / length**length_penalty], dim=1)
        self.scores, best = scores.topk(self.scores.size(1), dim=1)
        self.sums = torch.cat([self.sums, sums], dim=1).gather(1, best)
        self.tokens = take(torch.cat([self.tokens, tokens], dim=1), best)

    def hypotheses(self, b: int, eos_id: int) -> list[Hypothesis]:
        """Those of entry b."""
        found = []
        for tokens, total, score in zip(
            self.tokens[b].tolist(), self.sums[b].tolist(), self.scores[b].tolist(), strict=True
        ):
            if score > -math.inf:
                end = tokens.index(eos_id) if eos_id in tokens else None
                found.append(Hypothesis(tokens[:end], total, score))
        return found


def take(beams: Tensor, indices: Tensor) -> Tensor:
    """beams (B, n, M) and indices (B, m) of beams -> (B, m, M)."""
    return beams.gather(1, indices[:, :, None].expand(-1, -1, beams.size(2)))
