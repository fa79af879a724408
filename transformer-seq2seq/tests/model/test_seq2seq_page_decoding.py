"""Generation in the page, JavaScript in a headless Chromium, is decoding.py's."""

import json
from dataclasses import asdict

import pytest
import torch

from decoding import generate
from seq2seq import marian
from seq2seq.common.web_page import pack_model

SCRIPTS = "numbers.js", "model.js", "decoding.js"
TOLERANCE = 1e-4

# sources -> for each what was found; options as of generate, but sampling: settings of a sampler
RUN = """async ([config, packed, sources, maxLength, { sampling, ...options }]) => {
    const model = new Transformer(config, unpackModel(packed));
    const job = { breathe: async () => {} };
    const found = [];
    for (const source of sources) {
        const { states } = await model.encode(source, new Set(), job);
        const pick = sampling && { pick: sampler(sampling) };
        const answer = await generate(model, states.at(-1), maxLength, { ...options, ...pick }, new Set(), job);
        found.push(answer.found.map(({ path, ...rest }) => rest));
    }
    return JSON.stringify(found);
}"""

# one source -> the steps: for each hypothesis its ids, its parent's, its fate and its log-probability
STEPS = """async ([config, packed, source, maxLength, options]) => {
    const model = new Transformer(config, unpackModel(packed));
    const job = { breathe: async () => {} };
    const { states } = await model.encode(source, new Set(), job);
    const { found, steps } = await generate(model, states.at(-1), maxLength, options, new Set(), job);
    const idsOf = ({ path }) => path.map(({ token }) => token);
    const tell = (one) => [idsOf(one), idsOf(one.parent), one.fate, one.logProbability];
    const likeliest = found[0].path.map(({ parent }) => topK(parent.logProbs, 1)[0]);
    return JSON.stringify([steps.map((step) => step.map(tell)), found.map(idsOf), likeliest]);
}"""

# one source -> how often each token is drawn as the first, over many seeds
DRAWS = """async ([config, packed, source, count, settings]) => {
    const model = new Transformer(config, unpackModel(packed));
    const job = { breathe: async () => {} };
    const { states } = await model.encode(source, new Set(), job);
    const draws = Array(config.vocab_size).fill(0);
    for (let seed = 0; seed < count; seed++) {
        const options = { pick: sampler({ ...settings, seed }) };
        const { found } = await generate(model, states.at(-1), 1, options, new Set(), job);
        draws[found[0].path[0].token] += 1 / count;
    }
    return draws;
}"""

SCORE = """async ([config, packed, source, target, off]) => {
    const model = new Transformer(config, unpackModel(packed));
    const job = { breathe: async () => {} };
    const { states } = await model.encode(source, new Set(off), job);
    return score(model, states.at(-1), target, new Set(off), job);
}"""


@pytest.fixture(scope="module")
def page(scripted):
    """An empty page in which decoding.js has run."""
    return scripted(*SCRIPTS)


@pytest.fixture(scope="module")
def rounded(make_model):
    """rounded(vocab_size, seed, **sizes) -> a random model, its weights rounded to half precision as in a page."""
    return lambda vocab_size, seed=0, **sizes: round_weights(make_model(vocab_size, seed, **sizes))


def round_weights(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


def run(page, model, sources, max_length, **options):
    """Generate in the page -> for each source its hypotheses, dicts."""
    arguments = [asdict(model.config), pack_model(model.state_dict()), sources, max_length, options]
    return json.loads(page.evaluate(RUN, arguments))


def random_sources(vocab_size, count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 7, (count,), generator=rng).tolist()
    return [[*torch.randint(1, vocab_size - 1, (n,), generator=rng).tolist(), 0] for n in lengths]


def check_equal(page, model, sources, max_length, beam=1, length_penalty=1.0):
    """Assert that the page finds what PyTorch does."""
    options = {"beam": beam, "lengthPenalty": length_penalty}
    for source, found in zip(sources, run(page, model, sources, max_length, **options), strict=True):
        (expected,) = generate(model, torch.tensor([source]), max_length, beam, length_penalty)
        assert [one["ids"] for one in found] == [one.ids for one in expected]
        assert [one["finished"] for one in found] == [one.finished for one in expected]
        logs = [one.log_probability for one in expected], [one.score for one in expected]
        assert [one["logProbability"] for one in found] == pytest.approx(logs[0], abs=TOLERANCE)
        assert [one["score"] for one in found] == pytest.approx(logs[1], abs=TOLERANCE)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
def test_random_models_generate_what_pytorch_does(page, rounded, beam, length_penalty):
    for seed, vocab_size in enumerate((7, 30, 90)):
        model = rounded(vocab_size, seed)
        with torch.no_grad():
            model.output_bias[0] = 2.5  # so that some hypotheses end early and others go on
        check_equal(page, model, random_sources(vocab_size, 8, seed), 12, beam, length_penalty)


def test_a_beam_wider_than_the_vocabulary(page, rounded):
    check_equal(page, rounded(5, 2), random_sources(5, 3), 3, beam=20)


def test_a_trained_model_generates_what_pytorch_does(page, trained, training, held_out):
    model, tokenizer = marian.load(trained / "model", torch.device("cpu"))
    round_weights(model)
    sources = [tokenizer.encode(source).ids for source, *_ in [*training, *held_out]]
    for beam, length_penalty in ((1, 1.0), (2, 1.0), (5, 0.6)):
        check_equal(page, model, sources, model.config.max_length, beam, length_penalty)


# ---- the words that the reader puts


@pytest.mark.parametrize("beam", [1, 4])
def test_a_prefix_is_kept_and_gone_on_from(page, rounded, beam):
    """What follows a prefix is what the model finds when it starts there; what the model writes itself, put as a
    prefix, changes nothing."""
    model = rounded(30, 1)
    for source in random_sources(30, 6):
        (own, *_), *_ = run(page, model, [source], 10)
        (same, *_), *_ = run(page, model, [source], 10, prefix=own["ids"][:3])
        assert same == own
        prefix = [7, 3, 12]
        (found,) = run(page, model, [source], 10, beam=beam, prefix=prefix)
        assert all(one["ids"][:3] == prefix for one in found)
        ids = [model.config.pad_id, *found[0]["ids"], *([0] if found[0]["finished"] else [])]
        with torch.no_grad():
            logs = model(torch.tensor([source]), torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
        total = logs.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
        assert found[0]["logProbability"] == pytest.approx(total, abs=TOLERANCE)
        if beam == 1:
            assert ids[4:] == logs.argmax(dim=-1).tolist()[3:]


def test_an_end_can_be_put(page, rounded):
    (found,) = run(page, rounded(30), [[4, 5, 0]], 10, beam=3, prefix=[9, 0])
    assert [(one["ids"], one["finished"]) for one in found] == [([9], True)]


# ---- the record of the search


def test_steps_tell_how_the_beams_competed(page, rounded):
    """Each hypothesis extends one that went on; the best n that do not end go on; those that end are found."""
    model, n = rounded(30, 1), 4
    for source in random_sources(30, 5):
        arguments = [asdict(model.config), pack_model(model.state_dict()), source, 9, {"beam": n}]
        steps, found, likeliest = json.loads(page.evaluate(STEPS, arguments))
        going_on, ended = [[]], []
        for candidates in steps:
            logs = [log for *_, log in candidates]
            assert logs == sorted(logs, reverse=True)
            assert all(parent in going_on and ids[:-1] == parent for ids, parent, *_ in candidates)
            ended += [ids for ids, _, fate, _ in candidates if fate == "ended"]
            going_on = [ids for ids, _, fate, _ in candidates if fate == "open"]
            assert len(going_on) <= n and all(ids[-1] != 0 for ids in going_on)
            kept = [log for ids, _, fate, log in candidates if fate == "open"]
            worse = [log for ids, _, fate, log in candidates if fate == "dropped" and ids[-1] != 0]
            assert candidates is steps[-1] or not worse or min(kept) >= max(worse)
        assert all(ids in ended for ids in found)
        with torch.no_grad():
            target = torch.tensor([[model.config.pad_id, *found[0][:-1]]])
            assert likeliest == model(torch.tensor([source]), target)[0].argmax(dim=-1).tolist()


# ---- sampling


def test_the_same_seed_draws_the_same(page, rounded):
    model, sources = rounded(30, 1), random_sources(30, 4)
    draw = lambda seed: run(page, model, sources, 8, sampling={"temperature": 1.5, "seed": seed})  # noqa: E731
    assert draw(3) == draw(3)
    assert len({json.dumps(draw(seed)) for seed in range(6)}) > 4


def test_one_word_to_draw_from_is_greedy(page, rounded):
    model, sources = rounded(30, 1), random_sources(30, 6)
    greedy = run(page, model, sources, 10)
    for settings in ({"kept": 1}, {"mass": 1e-6}):
        assert run(page, model, sources, 10, sampling={"seed": 5, **settings}) == greedy


def test_a_word_put_changes_no_later_draw(page, rounded):
    model = rounded(30, 1)
    (drawn, *_), *_ = run(page, model, [[4, 9, 0]], 10, sampling={"temperature": 2, "seed": 1})
    (again, *_), *_ = run(page, model, [[4, 9, 0]], 10, sampling={"temperature": 2, "seed": 1}, prefix=drawn["ids"][:2])
    assert again == drawn


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 2.0}, {"kept": 3}, {"mass": 0.7}, {"temperature": 0.7, "kept": 5, "mass": 0.9}],
    ids=str,
)
def test_words_are_drawn_as_often_as_they_are_likely(page, rounded, settings):
    model, source, count = rounded(14, 3), [4, 9, 2, 0], 4000
    arguments = [asdict(model.config), pack_model(model.state_dict()), source, count, settings]
    drawn = torch.tensor(page.evaluate(DRAWS, arguments))
    with torch.no_grad():
        logits = model(torch.tensor([source]), torch.tensor([[model.config.pad_id]]))[0, 0]
    expected = (logits / settings.get("temperature", 1)).softmax(dim=-1)
    if "kept" in settings:
        expected[expected < expected.topk(settings["kept"]).values[-1]] = 0
        expected /= expected.sum()
    if "mass" in settings:
        before = torch.tensor([expected[expected > p].sum() for p in expected])
        expected[before >= settings["mass"]] = 0
        expected /= expected.sum()
    assert bool((drawn[expected == 0] == 0).all())
    deviation = (expected * (1 - expected) / count).sqrt()
    assert bool(((drawn - expected).abs() <= 4.5 * deviation + 1e-6).all()), (drawn, expected)


# ---- teacher forcing


def test_scores_are_pytorchs_and_change_without_the_causal_mask(page, rounded):
    model, source, target = rounded(30, 1), [4, 9, 2, 0], [8, 8, 21, 3, 0]
    arguments = [asdict(model.config), pack_model(model.state_dict()), source, target]
    with torch.no_grad():
        read = torch.tensor([[model.config.pad_id, *target[:-1]]])
        logs = model(torch.tensor([source]), read)[0].log_softmax(dim=-1)
    expected = logs.gather(1, torch.tensor(target)[:, None])[:, 0].tolist()
    assert page.evaluate(SCORE, [*arguments, []]) == pytest.approx(expected, abs=TOLERANCE)
    ahead = page.evaluate(SCORE, [*arguments, ["causal"]])
    assert max(abs(one - other) for one, other in zip(ahead, expected, strict=True)) > 0.01
