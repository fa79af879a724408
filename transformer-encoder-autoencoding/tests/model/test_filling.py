"""Filling masks, scoring sentences and cloze tests: each answer is that of the model's own logits for this one
sentence, computed here by hand, however many sentences are answered together."""

import math

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models

from mlm import MaskFiller, filling
from mlm.cloze import Cloze, answer, encode_clozes
from mlm.filling import Query, predict
from mlm.tokenizer import MASK, SPECIAL_TOKENS, SpecialIds

CPU = torch.device("cpu")
NUMBERS_OF_BATCH_TOKENS = [1, 30, 4096]  # a sentence at a time, a few, all


@pytest.fixture
def filler(tiny, tokenizer):
    """A random model."""
    return MaskFiller(tiny, tokenizer)


@torch.no_grad()
def logits_by_hand(model, tokenizer, sentence, hidden=None):
    """Return the logits (S, V) of one sentence, the token at position `hidden` replaced by [MASK]."""
    ids = torch.tensor([tokenizer.encode(sentence).ids])
    if hidden is not None:
        ids[0, hidden] = tokenizer.token_to_id(MASK)
    return model(ids)[0]


@pytest.mark.parametrize("batch_tokens", NUMBERS_OF_BATCH_TOKENS)
def test_predictions_do_not_depend_on_the_batch(tiny, tokenizer, training, monkeypatch, batch_tokens):
    """predict() puts queries of like length into one batch and pads them. Each must get, under its own index, the
    log-probabilities that it gets alone, in the order of its positions."""
    monkeypatch.setattr(filling, "BATCH_TOKENS", batch_tokens)
    texts = [training[0], *training[3:9], "the cat", f"{training[1]} {training[2]}"]
    queries = [Query(tokenizer.encode(text).ids, [1, 2][: 1 + i % 2]) for i, text in enumerate(texts)]
    found = dict(predict(queries, tiny, SpecialIds.of(tokenizer), CPU))
    assert sorted(found) == list(range(len(texts)))
    for i, query in enumerate(queries):
        alone = logits_by_hand(tiny, tokenizer, texts[i]).log_softmax(dim=-1)[query.positions]
        torch.testing.assert_close(found[i], alone, rtol=0, atol=1e-5)


def test_candidates_are_the_softmax_at_the_masks(filler):
    """p(token) = softmax(logits) at the position of [MASK], the likeliest first. Several [MASK]s of a sentence are
    filled independently: each is predicted while all others are hidden."""
    sentence = f"our {MASK} drives a {MASK} car"
    masks = filler(sentence, top_k=3)
    at_masks = [1 + i for i, word in enumerate(sentence.split()) if word == MASK]
    best = logits_by_hand(filler.model, filler.tokenizer, sentence)[at_masks].softmax(dim=-1).topk(3)
    assert len(masks) == 2
    for candidates, tokens, probabilities in zip(masks, best.indices, best.values, strict=True):
        assert [one["token"] for one in candidates] == list(map(filler.tokenizer.id_to_token, tokens.tolist()))
        assert [one["probability"] for one in candidates] == pytest.approx(probabilities.tolist(), abs=1e-6)


def test_candidates_for_the_whole_vocabulary_add_up_to_one(filler):
    (candidates,) = filler(f"the {MASK}", top_k=10**9)
    probabilities = [one["probability"] for one in candidates]
    assert len(candidates) == filler.model.config.vocab_size
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-4)


def test_surprisal_is_that_of_each_token_hidden_alone(filler):
    """An encoder sees both sides, so the probability of a sentence is not the product of its words' probabilities, as
    a decoder's is. Pseudo-perplexity (Salazar et al. 2020) hides one token after the other instead, each given all
    the others: exp of their mean surprisal. Unknown words were never labels in training, so they have no score."""
    sentence = "the dog chases the zebra ."
    result = filler.score(sentence)
    ids = filler.tokenizer.encode(sentence).ids
    expected = []
    for position in range(1, 5):  # without [CLS], the unknown words and [SEP]
        logits = logits_by_hand(filler.model, filler.tokenizer, sentence, hidden=position)
        expected.append(F.cross_entropy(logits[position], torch.tensor(ids[position])).item())
    assert [token["surprisal"] for token in result["tokens"]] == pytest.approx([*expected, None, None], abs=1e-5)
    assert [token["token"] for token in result["tokens"]] == ["the", "dog", "chases", "the", "[UNK]", "[UNK]"]
    assert result["pseudo_perplexity"] == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)


@pytest.mark.parametrize("batch_tokens", NUMBERS_OF_BATCH_TOKENS)
def test_many_sentences_are_answered_as_each_alone_is(filler, training, monkeypatch, batch_tokens):
    texts = [training[0], *training[3:9], "the cat", f"{training[1]} {training[2]}"]
    masked = [text.replace(" ", f" {MASK} ", 1) for text in texts]
    alone = [filler(text, top_k=3) for text in masked], [filler.score(text) for text in texts]
    monkeypatch.setattr(filling, "BATCH_TOKENS", batch_tokens)
    for found, expected in zip(filler(masked, top_k=3), alone[0], strict=True):
        for one, other in zip(found[0], expected[0], strict=True):
            assert one["token"] == other["token"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-4, abs=1e-6)
    for found, expected in zip(filler.score(texts), alone[1], strict=True):
        assert found["pseudo_perplexity"] == pytest.approx(expected["pseudo_perplexity"], rel=1e-4)
        assert [token["token"] for token in found["tokens"]] == [token["token"] for token in expected["tokens"]]


def test_a_long_sentence_is_scored_in_several_batches(make_model, bpe):
    """One sentence of more tokens than are hidden in one batch: 70 times 72 tokens are more than 4,096."""
    model = make_model(bpe.get_vocab_size(), max_length=150)
    sentence = "my mother bakes sweet bread today near the river and my father paints the old door red " * 2
    ids = bpe.encode(sentence).ids
    assert len(ids) > 66
    tokens = MaskFiller(model, bpe).score(sentence)["tokens"]
    assert len(tokens) == len(ids) - 2
    last = max(i for i, word in enumerate(bpe.encode(sentence).word_ids) if word == 12)  # of its word
    expected = F.cross_entropy(logits_by_hand(model, bpe, sentence, hidden=last)[last], torch.tensor(ids[last])).item()
    assert tokens[last - 1]["surprisal"] == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_the_later_tokens_of_a_word_do_not_give_it_away(make_model, bpe):
    """To score a word of several tokens, each is hidden together with those behind it (Kauf and Ivanova 2023)."""
    model = make_model(bpe.get_vocab_size(), max_length=60)
    encoding = bpe.encode("the zebra, reads")
    places = [i for i, word in enumerate(encoding.word_ids) if word == 1]
    assert len(places) > 2
    tokens = MaskFiller(model, bpe).score("the zebra, reads")["tokens"]
    for place in places:
        ids = torch.tensor([encoding.ids])
        ids[0, place : places[-1] + 1] = bpe.token_to_id(MASK)
        expected = F.cross_entropy(model(ids)[0, place], torch.tensor(encoding.ids[place])).item()
        assert tokens[place - 1]["surprisal"] == pytest.approx(expected, abs=1e-5)


def test_a_token_that_goes_on_a_word_is_filled_in_without_a_space(filler, bpe, tiny):
    """WordPiece marks it with ##, byte pair encoding by having no space of its own."""
    pieces = Tokenizer(models.WordPiece({token: i for i, token in enumerate([*SPECIAL_TOKENS, "h", "##at"])}))
    pieces.decoder = decoders.WordPiece()
    assert MaskFiller(tiny, pieces).insert(f"the h {MASK} is", [6]) == "the hat is"
    by_bytes = MaskFiller(tiny, bpe)
    assert by_bytes.insert(f"the h {MASK} {MASK}", [bpe.token_to_id("a"), bpe.token_to_id("Ġ")]) == "the ha ␣"
    assert filler.insert(f"the {MASK} is", [filler.tokenizer.token_to_id("cat")]) == "the cat is"


@pytest.mark.parametrize("kind", ["word", "bpe"])
@torch.no_grad()
def test_a_cloze_test_hides_all_tokens_of_the_key_and_no_other(kind, tokenizer, bpe, make_model):
    """A key word may be several subwords: all are hidden at once, so that none gives the others away. The loss is the
    mean over these tokens, and the guess is the likeliest token at each of them. A model in training, as it is between
    two epochs of an ablation, answers without dropout."""
    tokenizer = {"word": tokenizer, "bpe": bpe}[kind]
    model = make_model(tokenizer.get_vocab_size(), max_length=60, dropout=0.5)
    parts = [  # before, key, after
        ("the ", "cat", " chases the small mouse"),
        ("", "teacher", " reads a long story"),
        ("my mother bakes sweet bread ", "today", ""),
        ("two children play near the ", "river", " today"),
    ]
    expected, count, guesses = 0.0, 0, []
    for before, key, after in parts:
        whole, left = (tokenizer.encode(text).ids for text in (before + key + after, before.rstrip()))
        begin = len(left) - 1  # without [SEP]
        end = begin + len(tokenizer.encode(key).ids) - 2
        ids = torch.tensor([whole])
        ids[0, begin:end] = tokenizer.token_to_id(MASK)
        assert (kind == "word") == (end - begin == 1)
        logits = model(ids)[0, begin:end]
        expected += F.cross_entropy(logits, torch.tensor(whole[begin:end]), reduction="sum").item()
        count += end - begin
        guesses.append(tokenizer.decode(logits.argmax(dim=-1).tolist(), skip_special_tokens=False).strip())
    clozes = encode_clozes([Cloze("".join(part), part[1], "free") for part in parts], tokenizer, 60)
    answers = answer(clozes, model.train(), tokenizer)
    assert answers.loss == pytest.approx(expected / count, abs=1e-5)
    assert answers.guesses == guesses


# ---- a model that has learnt fifteen sentences by heart


def test_a_trained_model_fills_what_it_was_taught(trained, training):
    filler = MaskFiller.load(trained / "model", "cpu")
    hidden = [" ".join([*line.split()[:2], MASK, *line.split()[3:]]) for line in training]
    found = [masks[0][0]["token"] for masks in filler(hidden)]
    assert sum(token == line.split()[2] for token, line in zip(found, training, strict=True)) >= 14, found


def test_sentences_that_were_taught_are_less_surprising_than_nonsense(trained, training):
    filler = MaskFiller.load(trained / "model", "cpu")
    taught, shuffled = filler.score([training[0], " ".join(sorted(training[0].split()))])
    assert 1 <= taught["pseudo_perplexity"] < shuffled["pseudo_perplexity"] / 5
