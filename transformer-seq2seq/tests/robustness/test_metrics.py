"""The report's figures: references and outputs compared, several references, the nearest prompt."""

import re
from types import SimpleNamespace

import pytest
import torch

from seq2seq import Translator, metrics
from seq2seq.common.tfidf import TfIdf, words
from seq2seq.metrics import NearestPrompt, Prompt, Report, Scores, answer_all, bleu_and_chrf, exact_match, group
from seq2seq.pairs import Pair

AS_WRITTEN = [
    "a cafe\u0301 in the old town",
    "a  café in the old\u2003town ",
    "a ca\u00adfé in the old town",
    "\u095c in the old town",
]


def pairs(*rows):
    return [Pair(*row) for row in rows]


# ------------------------------------------------------------------------------------------------ outputs


def test_the_report_scores_the_outputs_that_inference_gives(make_model, tokenizer):
    """However long they are: a model that never ends an output stops at its own length."""
    model = make_model(tokenizer.get_vocab_size(), max_length=60, dropout=0.5).train()
    with torch.no_grad():
        model.output_bias[tokenizer.token_to_id("</s>")] = -1e4
    prompts = ["Good morning", "Where does a fox live?"]
    found = answer_all(model, tokenizer, [Prompt(prompt, []) for prompt in prompts])
    assert found == Translator(model, tokenizer)(prompts) and all(len(text.split()) > 40 for text in found)


def report(held_out, outputs):
    return Report(group(held_out), outputs, None, None, 0, 0.0)


@pytest.mark.parametrize("end", ["\r", "\v", "\u0085", "\u2028"])
def test_a_line_of_outputs_is_a_pair_whatever_line_ends_it_holds(tmp_path, end):
    held_out = pairs((f"a{end}b", f"c{end}d", "x"), ("e", "f", "x"))
    report(held_out, [f"g{end}h", "i"]).write_outputs(tmp_path / "outputs.tsv")
    lines = (tmp_path / "outputs.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["kind\tsource\treference\toutput", "x\ta b\tc d\tg h", "x\te\tf\ti"]


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("reference", AS_WRITTEN)
@pytest.mark.parametrize("output", AS_WRITTEN[:2])
def test_all_scores_see_normalized_texts(reference, output):
    output = reference if "\u095c" in reference else output
    scores, _ = bleu_and_chrf([output], [[reference]])
    assert scores == pytest.approx({"bleu": 100, "bleu_lowercased": 100, "chrf": 100})
    assert exact_match([output], [Prompt("", [reference])]) == 1


def test_the_baseline_that_repeats_the_reference_is_right():
    training = pairs(*[(f"number {i}", text) for i, text in enumerate(AS_WRITTEN)])
    held_out = group(training)
    found = [NearestPrompt(training).answer(prompt.source) for prompt in held_out]
    assert exact_match(found, held_out) == 1


@pytest.mark.parametrize(
    ("texts", "tokenize"), [(["right", "wrong"], "char"), (["我们今天去看电影", "他们明天去学校"], "zh")]
)
def test_bleu_of_references_without_four_tokens_is_undefined(texts, tokenize):
    references = [[text] for text in texts]
    scores, signature = bleu_and_chrf(texts, references)
    assert scores["bleu"] is scores["bleu_lowercased"] is None and scores["chrf"] == pytest.approx(100)
    assert signature == ""
    scores, signature = bleu_and_chrf(texts, references, tokenize)
    assert scores["bleu"] == pytest.approx(100) and f"tok:{tokenize}" in signature


def test_pairs_of_one_source_are_several_references():
    held_out = pairs(("Hello", "good day to you all"), ("Bye", "see you"), ("Hello ", "nice to see you all"))
    prompts = group(held_out)
    assert prompts == [Prompt("Hello", [held_out[0].target, held_out[2].target]), Prompt("Bye", [held_out[1].target])]
    for output in prompts[0].references:
        assert exact_match([output, "see you"], prompts) == 1
        scores, signature = bleu_and_chrf([output, "see you"], [prompt.references for prompt in prompts])
        assert scores["bleu"] == pytest.approx(100) and "nrefs:var" in signature
    assert len(group(pairs(("Hello", "a", "x"), ("Hello", "b", "y")))) == 2


def test_a_prompt_with_several_references_is_answered_and_counted_once(tiny, tokenizer, tmp_path, monkeypatch):
    training = pairs(("Good morning", "Hello"), ("Good morning", "Good morning, cook"), ("Where?", "A den"))
    held_out = pairs(("Hello, cook!", "a"), ("Hello, cook!", "b"))

    class Source(list):
        pass

    source = Source(training)
    source.held_out = held_out
    found = Report.of(tiny, SimpleNamespace(tokenizer=tokenizer, pairs=source))
    assert (found.n_recalled, len(found.outputs)) == (2, 1)
    found.write_outputs(tmp_path / "outputs.tsv")
    assert len((tmp_path / "outputs.tsv").read_text(encoding="utf-8").splitlines()) == 3
    monkeypatch.setattr(metrics, "MAX_RECALLED", 1)  # the other reference of that prompt counts nevertheless
    monkeypatch.setattr(metrics, "answer_all", lambda *_: ["Good morning, cook"])
    found = Report.of(tiny, SimpleNamespace(tokenizer=tokenizer, pairs=source))
    assert (found.n_recalled, found.recall) == (1, 1.0)


def test_the_models_scores_and_the_baselines_stand_where_they_are_said_to(capsys):
    held_out = group(pairs(*[(f"ask {i}", f"say {i}", "few" if i < 3 else "many") for i in range(20)]))
    scores = Scores(0.11, {"few": 0.12, "many": 0.13}, 14.0, 15.0)
    baseline = Scores(0.21, {"few": 0.22, "many": 0.23}, 24.0, 25.0)
    found = Report(held_out, [f"output {i}" for i in range(20)], scores, baseline, 30, 0.31)
    assert found.figures() == {
        "train_exact_match": 0.31,
        "held_out_exact_match": 0.11,
        "held_out_bleu": 14.0,
        "held_out_chrf": 15.0,
        "held_out_by_kind": scores.by_kind,
        "baseline_exact_match": 0.21,
        "baseline_bleu": 24.0,
        "baseline_chrf": 25.0,
        "baseline_by_kind": baseline.by_kind,
    }
    found.print()
    table, *examples = capsys.readouterr().out.strip().split("\n\n")
    assert [re.split(r" {2,}", line.strip()) for line in table.splitlines()] == [
        ["Transformer", "nearest prompt"],
        ["training prompts (30), exact match", "31.0%"],
        ["held-out few (3), exact match", "12.0%", "22.0%"],
        ["held-out many (17), exact match", "13.0%", "23.0%"],
        ["held out, BLEU", "14.0", "24.0"],
        ["held out, chrF", "15.0", "25.0"],
    ]
    assert [example.splitlines()[0] for example in examples] == [f"Input : ask {i}" for i in range(0, 16, 2)]


# ------------------------------------------------------------------------------------------------ the baseline


def test_rare_words_count_more():
    training = pairs(*[("what is the use of a thing", "other")] * 50, ("a photometer measures", "photometer"))
    assert NearestPrompt(training).answer("What is the use of a photometer?") == "photometer"


def test_tf_idf_is_the_cosine_of_counts_times_idf():
    index = TfIdf(["a a b", "b c", "c c c"], str.split)
    assert index.idf == pytest.approx({"a": 1 + 0.6931, "b": 1 + 0.2877, "c": 1 + 0.2877}, abs=1e-4)
    assert [index.nearest(query) for query in ("a", "b", "c", "b c", "d")] == [0, 1, 2, 1, None]


@pytest.mark.parametrize(
    ("sources", "query", "expected"),
    [
        (["दिन", "दान", "दीन"], "दीन", 2),  # alike but for their vowel signs
        (["我们今天去看电影", "他在学校学习", "天气很好"], "学校很大", 1),
        (["今天，去看电影", "今天，他在学校学习"], "今天，学校", 1),
        (["ฉันชอบแมว", "เขาไปโรงเรียน"], "โรงเรียนใหญ่", 1),
        (["12345", "67890", "24680"], "67891", 1),  # one word, which is new
        (["walk", "sing", "carry"], "sings", 1),
        (["The  caf\u0065\u0301", "The tea"], "the CAFÉ", 0),
    ],
)
def test_the_baseline_looks_up_text_of_any_script(sources, query, expected):
    training = [Pair(source, str(i)) for i, source in enumerate(sources)]
    baseline = NearestPrompt(training)
    assert [baseline.answer(source) for source in sources] == [pair.target for pair in training]
    assert baseline.answer(query) == str(expected)


def test_the_baseline_says_nothing_if_nothing_is_alike():
    assert NearestPrompt(pairs(("abc", "first"))).answer("xyz") == ""


def test_words_keep_their_marks_and_joiners():
    assert words("Don’t (WELL-known) हिन्दी می\u200cخواهم 电影!") == [
        "don’t",
        "well-known",
        "हिन्दी",
        "می\u200cخواهم",
        "电",
        "影",
    ]
