"""Many prompts: in batches by length, side by side on the cores, the best tokens found by blocks; and Translator."""

import inspect
import json
import math
from contextlib import nullcontext
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoding import Hypothesis, generate, top_candidates
from seq2seq import Translator, generation
from seq2seq.common.errors import InputError
from seq2seq.config import GenerationConfig
from seq2seq.generation import batches_by_length, blockwise_topk, fast_top_candidates, generate_all, side_by_side
from seq2seq.translator import Output
from transformer import Transformer, TransformerConfig

EOS = 0


def prompts(vocab_size, n, seed=0, longest=8):
    """n random rows of ids, each ending in </s>."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest, (n,), generator=rng).tolist()
    return [[*torch.randint(1, vocab_size - 1, (m,), generator=rng).tolist(), EOS] for m in lengths]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_many_prompts_are_answered_in_their_order(make_model, batch_size):
    model, rows = make_model(9), prompts(9, 8)
    expected = [generate(model, torch.tensor([row]), 6)[0][0].ids for row in rows]
    assert [found[0].ids for found in generate_all(model, rows, 6, batch_size)] == expected
    assert generate_all(model, [], 6, batch_size) == []


@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 300),
    k=st.integers(1, 12),
    block=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([3, 10**6]),
)
def test_the_largest_by_blocks_are_topks(rows, size, k, block, seed, levels):
    """Whatever stands where, with ties, minus infinities and a last block that is not full."""
    k = min(k, size)
    x = torch.randint(levels, (rows, size), generator=torch.Generator().manual_seed(seed)).float()
    x[x == 0] = -math.inf
    values, indices = blockwise_topk(x, k, block)
    assert torch.equal(values, x.topk(k).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_candidates_are_the_same_by_blocks(monkeypatch):
    """In a beam search over a vocabulary that is large enough for it."""
    by_blocks = []
    monkeypatch.setattr(generation, "blockwise_topk", lambda *args: by_blocks.append(args) or blockwise_topk(*args))
    log_probs, sums = torch.randn(4, 5, 8000).log_softmax(dim=-1), torch.randn(4, 5)
    for ours, expected in zip(
        fast_top_candidates(log_probs, sums, []), top_candidates(log_probs, sums, []), strict=True
    ):
        assert torch.equal(ours, expected)
    assert len(by_blocks) == 1
    fast_top_candidates(log_probs[:, :, :1000], sums, [])
    assert len(by_blocks) == 1


@pytest.fixture
def set_threads():
    """torch.set_num_threads, of which the test's end takes back what it did."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("d_model", "rows", "at_once", "threads_each"),
    [(128, 64, 3, 1), (128, 7, 1, 1), (256, 64, 1, 3)],
    ids=["narrow", "few rows", "wide"],
)
def test_cores_take_a_batch_each_or_share_one(set_threads, d_model, rows, at_once, threads_each):
    model = Transformer(TransformerConfig(10, 9, d_model=d_model))
    set_threads(3)
    with side_by_side(model, rows) as count:
        assert (count, torch.get_num_threads()) == (at_once, threads_each)
    assert torch.get_num_threads() == 3
    set_threads(100)
    with side_by_side(model, rows) as count:
        assert count <= 4


def test_two_threads_that_decode_leave_pytorch_its_threads(set_threads, make_model):
    """The second finds only one thread, and may end last."""
    set_threads(3)
    one, other = (side_by_side(make_model(9), 64) for _ in range(2))
    assert one.__enter__() == other.__enter__() == 3
    one.__exit__(None, None, None)
    assert torch.get_num_threads() == 1
    other.__exit__(None, None, None)
    assert torch.get_num_threads() == 3


@given(lengths=st.lists(st.integers(1, 9), max_size=200), size=st.integers(1, 20), at_once=st.integers(1, 4))
def test_batches_hold_every_prompt_once_the_longest_first(lengths, size, at_once):
    batches = batches_by_length([[EOS] * n for n in lengths], size, at_once)
    places = [i for rows in batches for i in rows]
    assert sorted(places) == list(range(len(lengths)))
    assert [lengths[i] for i in places] == sorted(lengths, reverse=True)
    assert all(0 < len(rows) <= size for rows in batches)


@pytest.mark.parametrize(
    ("n", "at_once", "sizes"),
    [
        (320, 1, [64] * 5),
        (320, 2, [53, 53, 54] * 2),
        (128, 2, [32] * 4),
        (65, 2, [16, 16, 16, 17]),
        (64, 2, [32, 32]),
        (3, 2, [1, 2]),
        (1, 2, [1]),
        (0, 2, []),
    ],
)
def test_each_core_gets_as_many_batches_of_like_size(n, at_once, sizes):
    assert [len(rows) for rows in batches_by_length([[EOS]] * n, 64, at_once)] == sizes


def test_batches_decoded_side_by_side_give_what_one_after_the_other_gives(make_model, monkeypatch):
    model, rows, found = make_model(9), prompts(9, 100), {}
    for count in (1, 4):
        monkeypatch.setattr(generation, "side_by_side", lambda *_, count=count: nullcontext(count))
        found[count] = generate_all(model, rows, 8, batch_size=8, beam=2)
    assert [[(h.ids, pytest.approx(h.score)) for h in of] for of in found[1]] == [
        [(h.ids, h.score) for h in of] for of in found[4]
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_in_one_batch_ends_them_all(make_model, monkeypatch, count):
    begun = []

    def fail(model, source, *_):
        begun.append(len(source))
        raise InputError("no more")

    monkeypatch.setattr(generation, "generate", fail)
    monkeypatch.setattr(generation, "side_by_side", lambda *_: nullcontext(count))
    with pytest.raises(InputError, match="no more"):
        generate_all(make_model(9), prompts(9, 1000), 8, batch_size=8)
    assert len(begun) < 100


# ----------------------------------------------------------------------------------------- Translator


@pytest.fixture(scope="module")
def translator(trained):
    return Translator.load(trained / "model")


def test_a_text_gives_a_text_and_a_list_a_list(translator, trained, training):
    sources, targets = [source for source, *_ in training], [target for _, target, _ in training]
    assert translator(sources[0]) == targets[0]
    assert translator(sources) == targets == translator(tuple(sources), beam=3, batch_size=2)
    assert translator([]) == []
    assert Translator.load(str(trained / "model"), "cpu")(sources[:1]) == targets[:1]


def test_n_best_gives_a_list_for_each_prompt(translator):
    best = translator("Good morning", beam=4, n_best=3)
    assert best[0] == translator("Good morning") and len(set(best)) == 3
    assert translator(["Good morning"], beam=4, n_best=3) == [best]


def test_an_n_best_list_holds_no_text_twice(translator, monkeypatch):
    """However often a text is drawn, or found in other tokens."""
    drawn = translator("Good morning", sample=True, top_k=1, n_best=3)
    assert drawn == [translator("Good morning")]
    monkeypatch.setattr("seq2seq.translator.to_text", lambda _, ids: " ".join(map(str, ids[:1])))
    best = translator("Good morning", beam=8, n_best=3)
    assert len(set(best)) == len(best)
    session = translator.session(GenerationConfig(beam=3, n_best=3))
    found = session.different_texts([Hypothesis([3], -1.0, -1.0, True), Hypothesis([3, 4], -2.0, -2.0, True)])
    assert found == [Output("3", -1.0, True)]  # the likelier one's


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_batch(translator, training):
    sources = [source for source, *_ in training]
    settings = {"sample": True, "temperature": 3.0, "n_best": 2, "seed": 5}
    found = [translator(sources, batch_size=size, **settings) for size in (1, 3, 64)]
    assert found[0] == found[1] == found[2] and translator(sources[:4], **settings) == found[0][:4]


def test_outputs_that_were_cut_carry_a_mark(translator, script, trained, capsys):
    flags = ["--model", trained / "model", "--json"]
    for max_length, finished in ((2, False), (16, True)):
        out, err = script("inference", *flags, "--max-length", max_length, stdin=b"Good morning\n\nGood morning\n")[1:]
        marks = [json.loads(line)["outputs"][0]["finished"] for line in out.splitlines()]
        assert marks == [finished, True, finished]
        assert ("2 outputs cut at 2 tokens; a larger limit gives more (--max-length)" in err) != finished
    translator("Good morning", max_length=2)
    assert "1 output cut at 2 tokens; a larger limit gives more (--max-length)" in capsys.readouterr().err


def test_a_model_that_has_no_more_positions_is_said_to_have_none(make_model, tokenizer, capsys):
    model = make_model(tokenizer.get_vocab_size())
    with torch.no_grad():
        model.output_bias[EOS] = -1e4
    Translator(model, tokenizer)("Good morning")
    assert "1 output cut at 16 tokens, all the model has" in capsys.readouterr().err


def test_keywords_are_the_flags_of_inference(translator, script, trained):
    """By name, by default and by effect."""
    keywords = [
        one for one in inspect.signature(Translator.__call__).parameters.values() if one.kind == one.KEYWORD_ONLY
    ]
    assert {one.name: one.default for one in keywords} == {one.name: one.default for one in fields(GenerationConfig)}
    drawing = {"sample": True, "temperature": 3.0, "top_k": 20, "top_p": 0.95, "seed": 7, "n_best": 4, "max_length": 9}
    searching = {"beam": 5, "length_penalty": -2.0, "n_best": 4, "batch_size": 1}
    for settings in (drawing, searching):
        flags = [
            part
            for name, value in settings.items()
            for part in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [value]))
        ]
        out = script("inference", "--model", trained / "model", *flags, "Good morning")[1]
        assert out.splitlines()[1:] == [f"Output: {text}" for text in translator("Good morning", **settings)]


@pytest.mark.parametrize(
    ("settings", "setting", "reason"),
    [
        ({"beam": 0}, "beam", "needs a whole number from 1 to 1,000, not 0"),
        ({"beam": 2.5}, "beam", "needs a whole number"),
        ({"length_penalty": math.inf}, "length_penalty", "needs a number from -10 to 10"),
        ({"sample": True, "top_p": 0}, "top_p", "needs a number"),
        ({"n_best": 3}, "n_best", "n_best 3 needs a beam of 3 or more, or sampling"),
        ({"n_best": 3, "beam": 2}, "n_best", "needs a beam of 3"),
        ({"sample": True, "beam": 2}, "sample", "cannot be combined"),
        ({"top_k": 3}, "sample", "need sampling"),
        ({"max_length": 17}, "max_length", "the model has 16 positions; lower it"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(translator, settings, setting, reason):
    with pytest.raises(InputError, match=reason) as caught:
        translator("Good morning", **settings)
    assert caught.value.setting == setting


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "prompt 1 is empty"),
        (["Good morning", " "], "prompt 2 is empty"),
        ("cook " * 16, "prompt 1 has 17 tokens, the model takes 16"),
        ("caf\udce9", "prompt 1 is not UTF-8 text"),
    ],
)
def test_bad_prompts_are_refused(translator, prompt, reason):
    with pytest.raises(InputError, match=reason):
        translator(prompt)


def test_a_prompt_may_fill_all_positions(translator):
    assert translator(["cook " * 15, "Good morning"])[1] == "Good morning, cook"


def test_unknown_words_are_named_without_what_stands_before_them(translator, capsys):
    translator("Good!zebra gnu")
    assert "sees <unk> instead: zebra, gnu\n" in capsys.readouterr().err


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no model here") as caught:
        Translator.load(tmp_path)
    assert caught.value.setting == "model"
