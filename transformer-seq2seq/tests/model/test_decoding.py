"""Greedy decoding, beam search and sampling, against brute force and Hugging Face's generate."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from seq2seq_reference import token_log_probs
from transformers import AutoModelForSeq2SeqLM

from decoding import Sampler, generate
from seq2seq import marian
from seq2seq.generation import generate_all
from seq2seq.tokenizer import train_tokenizer
from transformer import Transformer

few = settings(max_examples=25, deadline=None, database=None, derandomize=True)
EOS = 0


def prompts(vocab_size, n, seed=0, longest=5):
    """n random rows of ids, each ending in </s>."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest, (n,), generator=rng).tolist()
    return [[*torch.randint(1, vocab_size - 1, (m,), generator=rng).tolist(), EOS] for m in lengths]


def padded(rows, pad_id):
    longest = max(map(len, rows))
    return torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])


def every_output(model, prompt, max_length, length_penalty):
    """All possible outputs, ranked: (score, log-probability, ids without </s>)."""
    words, found = range(1, model.config.pad_id), []
    for length in range(1, max_length + 1):
        endings = range(model.config.pad_id) if length == max_length else [EOS]
        sequences = [[*words, end] for *words, end in itertools.product(*[words] * (length - 1), endings)]
        for ids, total in zip(sequences, token_log_probs(model, prompt, sequences).sum(dim=1), strict=True):
            words_alone = ids[:-1] if ids[-1] == EOS else ids
            found.append((float(total) / length**length_penalty, float(total), words_alone))
    return sorted(found, reverse=True)


def ended(ids, max_length):
    """An output with the </s> that ended it, if one did."""
    return ids if len(ids) == max_length else [*ids, EOS]


@few
@given(st.integers(0, 1000), st.integers(1, 5))
def test_greedy_takes_the_likeliest_token_at_every_step(make_model, seed, max_length):
    """By the model alone, which reads everything from the start for every token."""
    model = make_model(7, seed)
    (prompt,) = prompts(7, 1, seed)
    ids = [model.config.pad_id]
    with torch.no_grad():
        while len(ids) <= max_length and (len(ids) == 1 or ids[-1] != EOS):
            logits = model(torch.tensor([prompt]), torch.tensor([ids]))
            ids.append(int(logits[0, -1].argmax()))
    (found,) = generate(model, torch.tensor([prompt]), max_length)[0]
    assert ended(found.ids, max_length) == ids[1:]


@few
@given(st.integers(0, 1000), st.integers(1, 3), st.sampled_from([0.0, 0.6, 1.0, 2.0, -1.0]))
def test_a_beam_wide_enough_is_exhaustive_search(make_model, seed, max_length, length_penalty):
    """A beam as wide as there are outputs drops none of them, so that beam search must find all, in the order of their
    scores: what else it could find is what enumerating and scoring every possible output finds."""
    model = make_model(6, seed)
    (prompt,) = prompts(6, 1, seed)
    expected = every_output(model, prompt, max_length, length_penalty)
    (found,) = generate(model, torch.tensor([prompt]), max_length, 6**max_length, length_penalty)
    assert len(found) == len(expected)
    assert [h.score for h in found] == pytest.approx([score for score, *_ in expected], abs=1e-4)
    assert {(*h.ids, round(h.log_probability, 2)) for h in found} == {
        (*ids, round(total, 2)) for _, total, ids in expected
    } or [h.ids for h in found] == [ids for *_, ids in expected]
    assert found[0].ids == expected[0][2]


def test_exhaustive_search_at_length_four(make_model):
    model, prompt = make_model(6, 3), [2, 3, EOS]
    expected = every_output(model, prompt, 4, 1.0)
    (found,) = generate(model, torch.tensor([prompt]), 4, 6**4)
    assert [h.ids for h in found][:20] == [ids for *_, ids in expected][:20]
    greedy = generate(model, torch.tensor([prompt]), 4)[0][0]
    assert found[0].score >= greedy.score


@few
@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from([0.0, 0.6, 1.0]), st.integers(1, 5))
def test_hypotheses_are_what_they_say(make_model, seed, beam, length_penalty, max_length):
    """Distinct, in order, of legal length, and with the log-probability that the model gives them when it reads them
    at once (teacher forcing)."""
    model = make_model(8, seed)
    rows = prompts(8, 3, seed)
    outputs = generate(model, padded(rows, model.config.pad_id), max_length, beam, length_penalty)
    for prompt, found in zip(rows, outputs, strict=True):
        assert 1 <= len(found) <= beam
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(ended(h.ids, max_length)) for h in found}) == len(found)
        for h in found:
            ids = ended(h.ids, max_length)
            assert len(ids) <= max_length and EOS not in h.ids and model.config.pad_id not in ids
            total = float(token_log_probs(model, prompt, [ids]).sum())
            assert h.log_probability == pytest.approx(total, abs=1e-4)
            assert h.score == pytest.approx(h.log_probability / len(ids) ** length_penalty, abs=1e-5)


def assert_a_batch_gives_what_single_prompts_give(model, rows, beam):
    pad_id = model.config.pad_id
    alone = [generate(model, torch.tensor([row]), 8, beam)[0] for row in rows]
    assert len({len(row) for row in rows}) > 2 and len({len(found[0].ids) for found in alone}) > 1
    batch = padded(rows, pad_id)
    for source in (batch, F.pad(batch, (0, 5), value=pad_id)):
        for one, many in zip(alone, generate(model, source, 8, beam), strict=True):
            assert [h.ids for h in one] == [h.ids for h in many]
            assert [h.score for h in one] == pytest.approx([h.score for h in many], abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("seed", [2, 9])
def test_a_batch_gives_what_single_prompts_give(make_model, beam, seed):
    """Sentences of a batch end at different steps, leave it, and make others move up: none may notice."""
    model = make_model(9, seed)
    with torch.no_grad():
        model.output_bias[EOS] += 1  # of these models some sentences end at once, and some late
    assert_a_batch_gives_what_single_prompts_give(model, prompts(9, 7, seed, longest=8), beam)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_batch_gives_what_single_prompts_give_on_a_trained_model(trained, training, beam):
    model, tokenizer = marian.load(trained / "model", torch.device("cpu"))
    rows = [tokenizer.encode(source).ids for source, *_ in training]
    assert_a_batch_gives_what_single_prompts_give(model, rows, beam)


def test_one_token_is_the_most_that_length_one_gives(make_model):
    model = make_model(7, 5)
    log_probs = token_log_probs(model, [2, EOS], [[i] for i in range(6)])[:, 0]
    (found,) = generate(model, torch.tensor([[2, EOS]]), 1, beam=4)
    assert [ended(h.ids, 1)[0] for h in found] == log_probs.topk(4).indices.tolist()


def test_a_source_of_the_end_alone_is_answered(make_model):
    (found,) = generate(make_model(7), torch.tensor([[EOS]]), 5, beam=2)
    assert all(math.isfinite(h.log_probability) for h in found)


@pytest.mark.parametrize("pick", ["greedy", "beam", "sample"])
def test_pad_is_never_generated_even_where_it_is_likeliest(make_model, pick):
    model = make_model(7)
    with torch.no_grad():
        model.output_bias[6] = 30
        model.output_bias[EOS] = -30
    source = torch.tensor([[2, 3, EOS]])
    if pick == "sample":
        found = generate(model, source, 6, pick=Sampler([torch.Generator()]))[0]
    else:
        found = generate(model, source, 6, 1 if pick == "greedy" else 4)[0]
    assert found and all(len(h.ids) == 6 and 6 not in h.ids for h in found)


def test_the_hypotheses_of_a_source_share_its_keys_and_values(make_model, monkeypatch):
    """A wide beam multiplies the target's rows, but neither the memory nor what the cache keeps of it."""
    model, seen, decode = make_model(9, 2), [], Transformer.decode
    with torch.no_grad():
        model.output_bias[EOS] += 1  # some sentences are done before others

    def watch(self, target, memory, memory_mask, cache):
        hidden = decode(self, target, memory, memory_mask, cache)
        kept = {len(k) for k, _ in cache.memory.values()}
        seen.append((len(target), len(memory), len(memory_mask), *kept))
        return hidden

    monkeypatch.setattr(Transformer, "decode", watch)
    generate(model, padded(prompts(9, 7, 2), 8), 8, beam=3)
    sources = [rows[1] for rows in seen]
    assert seen == [(3 * n, n, n, n) for n in sources]
    assert sources == sorted(sources, reverse=True) and sources[-1] < sources[0]


def test_on_a_trained_model_a_beam_never_scores_below_greedy(trained, training, held_out):
    model, tokenizer = marian.load(trained / "model", torch.device("cpu"))
    rows = [tokenizer.encode(source).ids for source, *_ in training + held_out]
    for length_penalty in (0.0, 1.0):
        greedy = generate_all(model, rows, 16, 64, 1, length_penalty)
        for beam in (2, 5):
            wide = generate_all(model, rows, 16, 64, beam, length_penalty)
            for one, many in zip(greedy, wide, strict=True):
                assert many[0].score >= one[0].score - 1e-5


# ------------------------------------------------------------------------------------------- sampling

LOGITS = torch.tensor([0.5, 2.0, 1.0, -1.0, 0.0])


def draws(n=20_000, seed=0, **settings):
    """Shares of the tokens drawn from LOGITS."""
    sampler = Sampler([torch.Generator().manual_seed(seed)] * n, **settings)
    log_probs = LOGITS.log_softmax(dim=-1).expand(n, 1, -1)
    sums, parents, tokens = sampler(log_probs, torch.full((n, 1), -2.0), list(range(n)))
    torch.testing.assert_close(sums, -2.0 + log_probs[:, 0].gather(1, tokens))
    assert (parents == 0).all() and sums.shape == parents.shape == tokens.shape == (n, 1)
    return tokens.flatten().bincount(minlength=5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(temperature):
    """20,000 draws, and the chi-square test."""
    counts = draws(temperature=temperature)
    expected = 20_000 * (LOGITS / temperature).softmax(dim=-1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 23.5  # chi-square, 4 degrees: p = 0.0001


@pytest.mark.parametrize("top_k", [1, 2, 4, 9])
def test_top_k_keeps_the_likeliest(top_k):
    kept = LOGITS.argsort(descending=True)[:top_k]
    counts = draws(top_k=top_k)
    assert set(counts.nonzero().flatten().tolist()) == set(kept.tolist())
    expected = 20_000 * LOGITS[kept].softmax(dim=-1)
    assert float(((counts[kept] - expected) ** 2 / expected).sum()) < 23.5


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_top_p_keeps_the_fewest_that_add_up_to_it(kept):
    probs, order = LOGITS.softmax(dim=-1).sort(descending=True)
    below, above = float(probs[:kept].sum()) - 1e-3, float(probs[:kept].sum()) + 1e-3
    assert set(draws(top_p=below).nonzero().flatten().tolist()) == set(order[:kept].tolist())
    assert set(draws(top_p=above).nonzero().flatten().tolist()) == set(order[: kept + 1].tolist())


def test_top_p_is_taken_of_what_top_k_and_temperature_leave():
    assert draws(top_k=2, top_p=0.7).nonzero().flatten().tolist() == [1]  # 2/3 < 0.73 of the two, 0.55 of all
    assert draws(temperature=0.3, top_p=0.9).nonzero().flatten().tolist() == [1]


def test_a_cold_sampler_is_greedy_and_a_seed_repeats(make_model):
    model = make_model(9)
    source = padded(prompts(9, 6), 8)

    def sample(seed, **settings):
        sampler = Sampler([torch.Generator().manual_seed(seed + row) for row in range(len(source))], **settings)
        return [found[0] for found in generate(model, source, 8, pick=sampler)]

    assert [h.ids for h in sample(0, top_k=1)] == [found[0].ids for found in generate(model, source, 8)]
    assert [h.ids for h in sample(0, temperature=1e-3)] == [h.ids for h in sample(1, top_k=1)]
    assert sample(3) == sample(3) != sample(4)


def test_a_samples_log_probability_is_the_models_own(make_model):
    model, prompt = make_model(9), [3, 4, EOS]
    sampler = Sampler([torch.Generator().manual_seed(row) for row in range(5)], temperature=2.0, top_k=5)
    for h in itertools.chain(*generate(model, torch.tensor([prompt] * 5), 6, pick=sampler)):
        total = float(token_log_probs(model, prompt, [ended(h.ids, 6)]).sum())
        assert h.log_probability == pytest.approx(total, abs=1e-4)


# -------------------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beam, length_penalty", [(1, 1.0), (5, 1.0), (5, 0.3)])
def test_outputs_and_scores_are_hugging_faces(make_model, tmp_path, seed, beam, length_penalty):
    """The same weights, the same beams, the same ranking."""
    tokenizer = train_tokenizer(["a b c d e f"], "word", 300)
    size = tokenizer.get_vocab_size()
    model = make_model(size, seed)
    marian.save(tmp_path, model, tokenizer)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    source, max_length = padded(prompts(size, 6, seed), size - 1), 7
    expected = theirs.generate(
        source,
        attention_mask=(source != size - 1).long(),
        num_beams=beam,
        num_return_sequences=beam,
        max_new_tokens=max_length,
        length_penalty=length_penalty,
        output_scores=True,
        return_dict_in_generate=True,
    )
    found = generate(model, source, max_length, beam, length_penalty)
    sequences = [[i for i in row if i not in (EOS, size - 1)] for row in expected.sequences.tolist()]
    assert [h.ids for hypotheses in found for h in hypotheses] == sequences
    if beam > 1:
        scores = [h.score for hypotheses in found for h in hypotheses]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)
