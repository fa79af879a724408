"""From a trained model to token ids: greedy decoding, beam search and sampling, all in one loop.

A beam of n hypotheses grows by one token a step. Greedy decoding is a beam of one; sampling is a beam of one that
draws its token instead of taking the likeliest. The decoder computes each position once and keeps its keys and
values in a cache.

Legend: B sentences still being decoded, n beam width, V vocabulary, t the step, from 1, c candidates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from transformer import Cache, Transformer, padding_mask

# (log-probabilities of the next token (B, n, V), summed log-probabilities so far (B, n), which sentences these are)
# -> the candidates to go on with, best first: their sums, the beams they extend, their tokens (B, c) each
Pick = Callable[[Tensor, Tensor, list[int]], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Hypothesis:
    """One output: its token ids, without start and </s>; the sum of the log-probabilities of its tokens, </s>
    included (nats); that sum over length**length_penalty, by which hypotheses are ranked; and False if it was cut at
    the maximum length, before </s>."""

    ids: list[int]
    log_probability: float
    score: float
    finished: bool

    @classmethod
    def of(cls, ids: list[int], log_probability: float, eos_id: int, length_penalty: float) -> "Hypothesis":
        """Make one of all its token ids; the last is </s> if it is finished."""
        finished, score = ids[-1] == eos_id, log_probability / len(ids) ** length_penalty
        return cls(ids[:-1] if finished else ids, log_probability, score, finished)


def keep_best(found: list[Hypothesis], new: Hypothesis, n: int) -> float:
    """Add a hypothesis to those of its sentence, of which the best n stay, best first. Return the score that others
    have to beat: that of the n-th."""
    found.append(new)
    found.sort(key=lambda hypothesis: hypothesis.score, reverse=True)
    del found[n:]
    return found[-1].score if len(found) == n else -math.inf


def top_candidates(
    log_probs: Tensor,
    sums: Tensor,
    sentence: list[int],
    topk: Callable[[Tensor, int], tuple[Tensor, Tensor]] = torch.topk,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the candidates of beam search: the best 2 n of all n V extensions, so that n are left to go on with
    even if n of them end; for greedy decoding (n = 1) the best one."""
    n, vocab_size = log_probs.shape[1:]
    count = min(2 * n, n * vocab_size) if n > 1 else 1
    best, tokens = topk(log_probs, min(count, vocab_size))  # of each beam (B, n, c)
    totals, chosen = (sums[:, :, None] + best).flatten(1).topk(count)  # (B, c)
    return totals, chosen // best.size(2), tokens.flatten(1).gather(1, chosen)


@dataclass
class Sampler:
    """Draws the next token (n = 1) from the model's distribution, sharpened and cut.

    temperature divides the logits; of the resulting distribution, top_k keeps the k likeliest tokens (0: all), and
    top_p (Holtzman et al. 2020, section 3.1, "nucleus sampling") the fewest likeliest whose probabilities add up to
    at least top_p. The sums are still those of the model's own log-probabilities. Each sentence has a generator of its
    own, so that its output does not depend on the rest of the batch.
    """

    generators: list[torch.Generator]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, log_probs: Tensor, sums: Tensor, sentence: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a token for each sentence: a Pick."""
        probs = (log_probs[:, 0] / self.temperature).softmax(dim=-1)  # (B, V)
        cut = self.top_k > 0 or self.top_p < 1
        if cut:
            probs, tokens = probs.sort(descending=True)
            if self.top_k:
                probs[:, self.top_k :] = 0
                probs /= probs.sum(dim=-1, keepdim=True)
            probs[probs.cumsum(dim=-1) - probs >= self.top_p] = 0  # keeps a token if those before fall short
        generators = [self.generators[i] for i in sentence]
        draws = [torch.multinomial(p, 1, generator=g) for p, g in zip(probs.cpu(), generators, strict=True)]
        drawn = torch.stack(draws).to(probs.device)  # (B, 1)
        token = tokens.gather(1, drawn) if cut else drawn
        return sums + log_probs[:, 0].gather(1, token), torch.zeros_like(token), token


@torch.inference_mode()
def generate(
    model: Transformer,
    source: Tensor,
    max_length: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    pick: Pick = top_candidates,
) -> list[list[Hypothesis]]:
    """Decode a batch: greedily (beam 1), by beam search (Graves 2012; ranked as in Wu et al. 2016, section 7, with
    length**length_penalty as the divisor), or with a Sampler as pick.

    source (B, S) -> for each sentence at most `beam` hypotheses of at most max_length tokens, best first. A sentence
    leaves the batch when it has `beam` finished hypotheses and no unfinished one, if it ended now, would outrank the
    last of them. Of the candidates that end, those among the best n finish: a worse one must not end before a better
    one goes on. Like all beam search it can, if rarely, end below greedy decoding, whose path may have left the beam on
    the way.

    Indices: entry b of the batch is sentence[b] of the source and row b of the memory; its beam i is row b n + i of
    the target.
    """
    config, device, n = model.config, source.device, beam
    memory, _ = model.encode(source)
    memory_mask, cache = padding_mask(source, config.pad_id), Cache()
    results: list[list[Hypothesis]] = [[] for _ in range(len(source))]

    sentence = list(range(len(source)))  # which one each entry of the batch is
    tokens = torch.full((len(source), n, 1), config.pad_id, device=device)  # (B, n, t), <pad> first
    sums = torch.full((len(source), n), -math.inf, device=device)  # log-probabilities of the unfinished
    sums[:, 0] = 0  # all beams are still the same: go on from one
    to_beat = torch.full((len(source),), -math.inf, device=device)  # the score of the n-th finished one

    for t in range(1, max_length + 1):
        hidden = model.decode(tokens[:, :, -1].reshape(-1, 1), memory, memory_mask, cache)  # (B n, 1, D)
        log_probs = model.project(hidden[:, -1]).float().log_softmax(dim=-1)
        totals, parents, next_tokens = pick(log_probs.unflatten(0, (-1, n)), sums, sentence)  # (B, c) each

        ends = (next_tokens == config.eos_id) | (t == max_length)
        for b, i in ends[:, :n].nonzero().tolist():
            if (total := float(totals[b, i])) > -math.inf:  # else the vocabulary has too few, or it is NaN
                ids = [*tokens[b, parents[b, i], 1:].tolist(), int(next_tokens[b, i])]
                new = Hypothesis.of(ids, total, config.eos_id, length_penalty)
                to_beat[b] = keep_best(results[sentence[b]], new, n)

        open_totals = totals.masked_fill(ends, -math.inf)
        sums, order = (part[:, :n] for part in open_totals.sort(dim=1, descending=True, stable=True))
        parents, next_tokens = parents.gather(1, order), next_tokens.gather(1, order)  # (B, n)
        tokens = torch.cat([tokens.gather(1, parents[:, :, None].expand(-1, -1, t)), next_tokens[:, :, None]], 2)

        going_on = to_beat < sums[:, 0] / t**length_penalty  # (B,)
        alive = going_on.nonzero().flatten()
        if not len(alive):
            break
        rows = torch.arange(len(tokens), device=device)[:, None] * n + parents  # (B, n) of the target
        fewer = len(alive) < len(tokens)
        if fewer:
            sentence = [sentence[b] for b in alive.tolist()]
            tokens, sums, to_beat, rows = tokens[alive], sums[alive], to_beat[alive], rows[alive]
            memory, memory_mask = memory.index_select(0, alive), memory_mask.index_select(0, alive)
            cache.select_memory(alive)
        if fewer or n > 1:
            cache.select(rows.flatten())
    return results
