"""The engine CTranslate2 beside decoding.py: the same outputs, the same log-probabilities, the same flags."""

import json
import math
import sys
from collections import Counter

import pytest
import torch
from seq2seq_reference import token_log_probs

from decoding import generate
from seq2seq import InputError, Translator
from seq2seq.config import GenerationConfig
from seq2seq.engines import CTranslate2Engine, PyTorchEngine
from transformer import Transformer, TransformerConfig

EOS, LONGEST = 0, 12


def random_model(seed):
    """A model of random sizes whose outputs end early, late, at once and not at all."""
    rng = torch.Generator().manual_seed(seed)

    def one_of(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=rng))]

    vocab_size, heads = one_of(9, 40, 70), one_of(1, 2, 4)
    torch.manual_seed(seed)
    model = Transformer(
        TransformerConfig(
            vocab_size,
            pad_id=one_of(vocab_size - 1, vocab_size - 1, 5),
            d_model=heads * one_of(4, 7, 8),
            n_encoder_layers=one_of(1, 2),
            n_decoder_layers=one_of(1, 3),
            n_heads=heads,
            d_ff=one_of(10, 48),
            max_length=LONGEST,
            activation=one_of("relu", "swish"),
        )
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
        model.embeddings.token.weight[model.config.pad_id] = 0
        model.output_bias[EOS] += one_of(0, 1, 2)
    return model


def random_prompts(model, n, seed=0):
    """n prompts of 1 to 11 tokens, each ending in </s>, none with <pad> in it."""
    rng, pad_id = torch.Generator().manual_seed(seed), model.config.pad_id
    words = torch.tensor([token for token in range(1, model.config.vocab_size) if token != pad_id])
    lengths = torch.randint(1, LONGEST, (n,), generator=rng).tolist()
    return [[*words[torch.randint(len(words), (length,), generator=rng)].tolist(), EOS] for length in lengths]


def test_a_penalty_may_be_a_whole_number():
    """A power of whole numbers can be too large for PyTorch."""
    penalty = GenerationConfig(length_penalty=10).resolve(random_model(0)).length_penalty
    assert type(penalty) is float and penalty == 10


def decode(engine, prompts, model, **settings):
    return engine.decoder(GenerationConfig(**settings).resolve(model))(prompts)


def log_probability(model, prompt, hypothesis):
    """The sum of a hypothesis's log-probabilities under teacher forcing."""
    ids = [*hypothesis.ids, EOS] if hypothesis.finished else hypothesis.ids
    return float(token_log_probs(model, prompt, [ids]).sum())


def test_greedy_outputs_are_those_of_200_random_models():
    """Token for token, with their log-probabilities, empty ones and ones that are cut included."""
    lengths = Counter()
    for seed in range(200):
        model = random_model(seed)
        prompts = random_prompts(model, 5, seed)
        settings = {"max_length": LONGEST - seed % 3, "batch_size": 1 + seed % 4, "length_penalty": seed % 5 / 2 - 1}
        ours = decode(PyTorchEngine(model), prompts, model, **settings)
        theirs = decode(CTranslate2Engine(model, "cpu"), prompts, model, **settings)
        for (mine,), (other,) in zip(ours, theirs, strict=True):
            assert (mine.ids, mine.finished) == (other.ids, other.finished), seed
            assert other.log_probability == pytest.approx(mine.log_probability, abs=1e-4)
            assert other.score == pytest.approx(mine.score, abs=1e-4)
            lengths["cut" if not mine.finished else "empty" if not mine.ids else "words"] += 1
    assert min(lengths[kind] for kind in ("cut", "empty", "words")) >= 30


@pytest.mark.parametrize("length_penalty", [1.0, 0.4, 0.0, -1.0])
def test_beams_have_the_log_probabilities_of_the_model(length_penalty):
    """Whatever is found, and ranked by the same score. As CTranslate2 stops earlier, ours may be better."""
    same = 0
    for seed in range(20):
        model = random_model(seed)
        prompts = random_prompts(model, 8, seed)
        settings = {"beam": 4, "n_best": 2, "length_penalty": length_penalty}
        ours = decode(PyTorchEngine(model), prompts, model, **settings)
        theirs = decode(CTranslate2Engine(model, "cpu"), prompts, model, **settings)
        for prompt, mine, other in zip(prompts, ours, theirs, strict=True):
            assert len(mine) == len(other) == 4  # more than n_best, as two may have the same text
            for one in other:
                length = len(one.ids) + one.finished
                assert one.log_probability == pytest.approx(log_probability(model, prompt, one), abs=1e-4)
                assert one.score == pytest.approx(one.log_probability / length**length_penalty, abs=1e-4)
            assert [one.score for one in other] == sorted((one.score for one in other), reverse=True)
            same += mine[0].ids == other[0].ids
    assert same > 140  # of 160


def test_a_prompt_of_any_length_is_read_to_its_end(make_model):
    """By itself CTranslate2 cuts prompts at 1024 tokens."""
    model = make_model(9, max_length=1100)
    rng = torch.Generator().manual_seed(0)
    prompt = [*torch.randint(1, 8, (1050,), generator=rng).tolist(), EOS]
    engines = PyTorchEngine(model), CTranslate2Engine(model, "cpu")
    ((ours,),), ((theirs,),) = (decode(engine, [prompt], model, max_length=5) for engine in engines)
    assert theirs.ids == ours.ids
    assert theirs.log_probability == pytest.approx(ours.log_probability, abs=1e-4)


def test_a_trained_model_answers_alike(trained, training, held_out):
    sources = [source for source, *_ in training + held_out]
    ours, theirs = Translator.load(trained / "model", "cpu"), Translator.load(trained / "model", "cpu", "ctranslate2")
    assert ours(sources) == theirs(sources)
    best = [one[0] for one in theirs(sources, beam=4, n_best=2, batch_size=2)]
    assert ours(sources, beam=4)[: len(training)] == best[: len(training)]


def test_what_is_drawn_follows_the_same_distribution():
    """Of the first token, with a temperature and cut at top_k and top_p, in 20,000 draws each."""
    model = random_model(1)
    (prompt,) = random_prompts(model, 1, seed=4)
    engine, n = CTranslate2Engine(model, "cpu"), 20_000
    with torch.no_grad():
        logits = model(torch.tensor([prompt]), torch.tensor([[model.config.pad_id]]))[0, 0]
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 4, 1.0), (1.0, 0, 0.6), (1.0, 5, 0.8)):
        probs, tokens = (logits / temperature).softmax(dim=-1).sort(descending=True)
        if top_k:
            probs[top_k:] = 0
            probs /= probs.sum()
        probs[probs.cumsum(dim=-1) - probs >= top_p] = 0
        probs /= probs.sum()
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "n_best": 1000}
        found = decode(engine, [prompt] * (n // 1000), model, sample=True, max_length=1, **settings)
        first = Counter([*one.ids, EOS][0] for hypotheses in found for one in hypotheses)
        shares = torch.tensor([first[token] / n for token in tokens.tolist()])
        assert (shares - probs).abs().sum() / 2 < 0.03
        assert not shares[probs == 0].any()


def test_draws_have_the_log_probabilities_of_the_model_and_the_seed_decides_them():
    model = random_model(3)
    prompts = random_prompts(model, 6)
    settings = {"sample": True, "temperature": 1.5, "n_best": 3, "batch_size": 2, "top_k": 500}
    found, again, other = (
        decode(CTranslate2Engine(model, "cpu"), prompts, model, seed=seed, **settings) for seed in (1, 1, 2)
    )
    assert found == again != other
    for prompt, hypotheses in zip(prompts, found, strict=True):
        for one in hypotheses:
            assert one.log_probability == pytest.approx(log_probability(model, prompt, one), abs=1e-4)
        assert hypotheses == sorted(hypotheses, key=lambda one: -one.log_probability)


def test_draws_among_one_word_are_the_greedy_output():
    """CTranslate2 takes top_k 1 for greedy decoding, which has one hypothesis."""
    model = random_model(3)
    prompts = random_prompts(model, 6)
    drawn = decode(CTranslate2Engine(model, "cpu"), prompts, model, sample=True, top_k=1, n_best=5)
    assert [one.ids for one, *_ in drawn] == [one.ids for (one,) in decode(PyTorchEngine(model), prompts, model)]


def test_sessions_with_different_seeds_do_not_disturb_each_other():
    """Whichever is made first, or draws first; and a session goes on where it was."""
    model = random_model(3)
    engine, prompts = CTranslate2Engine(model, "cpu"), random_prompts(model, 6)
    one, two, again = (
        engine.decoder(GenerationConfig(sample=True, n_best=3, seed=seed).resolve(model)) for seed in (1, 2, 1)
    )
    first, second = one(prompts), one(prompts)
    assert first != two(prompts) != second != first
    assert [again(prompts), again(prompts)] == [first, second]


def test_later_words_are_drawn_like_the_first():
    """The mean log-probability of whole outputs is that of PyTorch's, up to 4 standard errors."""
    model = random_model(1)
    prompts, settings = random_prompts(model, 1, seed=4) * 4, {"sample": True, "n_best": 1000, "top_k": 20}
    samples = []
    for engine in (PyTorchEngine(model), CTranslate2Engine(model, "cpu")):
        found = decode(engine, prompts, model, **settings)
        samples.append(torch.tensor([one.log_probability for hypotheses in found for one in hypotheses]))
    error = math.sqrt(sum(float(sample.var()) / len(sample) for sample in samples))
    assert abs(samples[0].mean() - samples[1].mean()) < 4 * error


def test_whole_numbers_of_8_bits_are_near(trained, training):
    """int8 rounds: log-probabilities change a little, the outputs of a confident model do not."""
    sources = [source for source, *_ in training]
    whole = Translator.load(trained / "model", "cpu", "ctranslate2")
    rounded = Translator.load(trained / "model", "cpu", "ctranslate2", "int8")
    assert whole(sources) == rounded(sources)
    totals = [one.session(GenerationConfig()).answer(sources) for one in (whole, rounded)]
    apart = [abs(a.log_probability - b.log_probability) for (a,), (b,) in zip(*totals, strict=True)]
    assert 0 < max(apart) < 0.5


def test_the_script_has_the_engine(script, trained):
    """The same lines, blank ones included; JSON and n-best lists with the same log-probabilities."""
    flags, stdin = ["--model", trained / "model"], b"Good morning\n\nThe cook eats the cake\n"
    for more in ([], ["--beam", 3], ["--batch-size", 1], ["--json", "--beam", 3, "--n-best", 2, "--max-length", 5]):
        status, mine, _ = script("inference", *flags, *more, stdin=stdin)
        assert status == 0
        status, other, _ = script("inference", *flags, *more, "--engine", "ctranslate2", stdin=stdin)
        assert status == 0
        if "--json" not in more:
            assert mine == other
            continue
        for a, b in zip(mine.splitlines(), other.splitlines(), strict=True):
            for one, two in zip(json.loads(a)["outputs"], json.loads(b)["outputs"], strict=True):
                assert one == {**two, "log_probability": pytest.approx(two["log_probability"], abs=1e-4)}


def test_what_it_cannot_do_is_refused(script, trained, monkeypatch):
    import ctranslate2

    flags = ["--model", trained / "model", "Good morning"]
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _: {"float32", "int8"})
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 0)
    for more, reason in (
        (["--engine-precision", "int8"], "is a setting of the engine ctranslate2 (--engine-precision)"),
        (["--engine", "ctranslate2", "--device", "cuda"], "none that CTranslate2 can use; use cpu (--device)"),
        (["--engine", "ctranslate2", "--device", "mps"], "none that CTranslate2 can use; use cpu (--device)"),
        (["--engine", "ctranslate2", "--engine-precision", "bfloat16"], "no bfloat16; use one of float32, int8"),
        (["--engine", "tensorflow"], "invalid choice: 'tensorflow'"),
    ):
        status, out, err = script("inference", *flags, *more)
        assert (status, out, err.count("\n")) == (2, "", 1) and reason in err
    with pytest.raises(InputError, match="use one of pytorch, ctranslate2"):
        Translator.load(trained / "model", engine="tensorflow")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)  # as if it were not installed
    status, out, err = script("inference", *flags, "--engine", "ctranslate2")
    assert (status, out, err.count("\n")) == (2, "", 1) and "pip install ctranslate2 (--engine)" in err


def test_damaged_weights_are_named():
    """All probabilities are NaN."""
    model = random_model(0)
    with torch.no_grad():
        model.embeddings.token.weight.fill_(math.nan)
    prompts = random_prompts(model, 2)
    for settings in ({}, {"beam": 3}, {"sample": True}):
        with pytest.raises(InputError, match="outputs NaN"):
            decode(CTranslate2Engine(model, "cpu"), prompts, model, **settings)


def test_a_device_that_fails_is_named(monkeypatch):
    """As a GPU does whose libraries are missing."""
    model = random_model(0)
    engine = CTranslate2Engine(model, "cpu")

    class Broken:
        def translate_batch(self, *_, **__):
            raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")

    monkeypatch.setattr(engine, "searcher", Broken())
    monkeypatch.setattr(engine, "device", "cuda")
    with pytest.raises(InputError, match=r"fails on device cuda: Library libcublas.so.12 is not found .*; use cpu"):
        decode(engine, random_prompts(model, 1), model)


def test_more_beams_than_words():
    model = random_model(next(seed for seed in range(99) if random_model(seed).config.vocab_size == 9))
    prompts = random_prompts(model, 3)
    found = decode(CTranslate2Engine(model, "cpu"), prompts, model, beam=20, n_best=20, max_length=3)
    ours = [generate(model, torch.tensor([prompt]), 3, beam=20)[0] for prompt in prompts]
    assert [one[0].ids for one in found] == [one[0].ids for one in ours]
