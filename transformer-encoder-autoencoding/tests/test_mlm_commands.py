"""The scripts as a user runs them: from another folder, with files, arguments, pipes and Ctrl-C."""

import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mlm import bert as pretrained
from mlm.filling import Sentence, fill, score
from mlm.tokenizer import MASK, SPECIAL_TOKENS

FOLDER = Path(__file__).parent.parent
CPU = torch.device("cpu")
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
TOKEN_FILES = {"meta.json", "tokenizer.json", *(f"windows.{n}.npy" for n in ("ids", "lengths", "offsets"))}
RUN_FILES = {"metrics.jsonl", "metrics.json", "loss_curve.png", "checkpoint.pt", "model", "tokens"}
RECORD = {"epoch", "step", "seconds", "tokens", "train_loss", "held_out_loss", "learning_rate"}
FIGURES = {"epochs", "steps", "seconds", "parameters", "train_loss", "held_out_loss", "held_out_accuracy"}
OF_CLOZES = {"recall_loss", "recall_accuracy", "held_out_by_kind", "baseline_by_kind"}


@pytest.fixture(scope="module")
def loaded(trained):
    """The trained model and its tokenizer."""
    return pretrained.load(trained / "model", CPU)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def png_size(path):
    """Width and height of a PNG whose every chunk is whole."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        checksum = struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0]
        assert zlib.crc32(content[at + 4 : at + 8 + length]) == checksum
        kinds.append(kind)
        at += 12 + length
    assert kinds[0] == b"IHDR" and b"IDAT" in kinds and kinds[-1] == b"IEND"
    return struct.unpack(">II", content[16:24])


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


# ---- train_mlm.py


def test_training_writes_the_promised_files_and_no_others(trained):
    assert {path.name for path in trained.iterdir()} == RUN_FILES | {"checkpoint.before.pt"}
    assert {path.name for path in (trained / "model").iterdir()} == MODEL_FILES
    assert {path.name for path in (trained / "tokens").iterdir()} == TOKEN_FILES
    width, height = png_size(trained / "loss_curve.png")
    assert 500 < width < 2000 and 300 < height < 1500


def test_the_curve_has_a_record_for_every_evaluation(trained):
    lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert all(set(record) >= RECORD for record in records)
    assert all(isinstance(value, int | float) for record in records for value in record.values())
    assert [record["step"] for record in records] == [50, 100, 150, 200, 250, 300]
    for name in ("epoch", "seconds", "tokens"):
        values = [record[name] for record in records]
        assert values == sorted(values)
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 3
    assert records[-1]["learning_rate"] < records[1]["learning_rate"] / 100


def test_the_figures_are_those_of_the_run_and_of_the_cloze_tests(trained, training):
    metrics = read_json(trained / "metrics.json")
    assert set(metrics) == FIGURES | OF_CLOZES
    assert metrics["steps"] == 300 and metrics["epochs"] == 300
    assert metrics["recall_accuracy"] > 0.9 and metrics["recall_loss"] < 0.7
    assert set(metrics["held_out_by_kind"]) == set(metrics["baseline_by_kind"]) == {"combination"}
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert metrics["held_out_loss"] in [record["held_out_loss"] for record in records]
    parameters = sum(p.numel() for p in pretrained.load(trained / "model", CPU)[0].parameters())
    assert metrics["parameters"] == parameters


def test_the_table_shows_model_and_baseline_side_by_side(trained, training):
    printed = (trained.parent / "stdout.txt").read_text(encoding="utf-8")
    metrics = read_json(trained / "metrics.json")
    assert f"{len(training)} sentences to train on, 3 held out" in printed
    line = next(line for line in printed.splitlines() if line.startswith("held-out combination"))
    shares = metrics["held_out_by_kind"]["combination"], metrics["baseline_by_kind"]["combination"]
    assert line.split()[-2:] == [f"{share:.1%}" for share in shares]
    line = next(line for line in printed.splitlines() if line.startswith("training sentences (15)"))
    assert line.split()[-2] == f"{metrics['recall_accuracy']:.1%}"
    assert "Traceback" not in (trained.parent / "stderr.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, folder, command, sizes, training):
    """The folder copied alone to another place, and a short run there with the default --output."""
    place = tmp_path_factory.mktemp("alone")
    ignore = shutil.ignore_patterns("model", "results", "tests", "__pycache__", ".*")
    copy = shutil.copytree(folder, place / "copy", ignore=ignore)
    (place / "text.txt").write_text("\n".join(training), encoding="utf-8")
    before = files_below(place)
    flags = ["--corpus", "text.txt", "--tokenizer", "bpe", "--max-steps", 3]
    done = command("train_mlm.py", *flags, *sizes, "--device", "cpu", cwd=place, folder=copy)
    assert done.returncode == 0, done.stderr
    return place, copy, files_below(place) - before, done


def test_the_folder_works_alone_elsewhere_and_writes_to_its_results(elsewhere):
    _, _, new, _ = elsewhere
    expected = {f"results/{name}" for name in RUN_FILES} | {f"results/model/{name}" for name in MODEL_FILES}
    expected |= {f"results/tokens/{name}" for name in TOKEN_FILES}
    assert new == {f"copy/{name}" for name in [*expected, "results"]}


def test_without_cloze_files_the_figures_are_those_of_the_run(elsewhere):
    _, copy, _, done = elsewhere
    assert set(read_json(copy / "results" / "metrics.json")) == FIGURES
    assert "key word" not in done.stdout


def test_the_other_commands_use_the_folders_own_model(elsewhere, command):
    place, copy, _, _ = elsewhere
    before = files_below(place)
    done = command("visualize_attention.py", cwd=place, folder=copy)
    assert done.returncode == 0, done.stderr
    assert files_below(place) - before == {f"copy/results/attention_{name}.png" for name in ("heatmap", "heads")}
    done = command("fill_mask.py", f"the cat {MASK} the mouse", cwd=place, folder=copy)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 6


def test_ctrl_c_keeps_what_was_learnt_and_resume_goes_on(tmp_path, folder, command, sizes, training):
    (tmp_path / "text.txt").write_text("\n".join(training), encoding="utf-8")
    flags = ["--corpus", "text.txt", "--output", "out", *sizes, "--device", "cpu"]
    line = [sys.executable, str(folder / "train_mlm.py"), *flags, "--max-steps", "1000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as running:
        shown = b""
        while not re.search(rb"[1-9]\d*/1000000", shown):  # the first step is made
            piece = running.stderr.read1()
            assert piece, shown
            shown += piece
        running.send_signal(signal.SIGINT)
        shown += running.stderr.read()
    assert running.returncode == 130, shown
    last = shown.decode().rstrip("\n").split("\n")[-1].split("\r")[-1]
    assert last.startswith("train_mlm.py: interrupted") and "--resume" in last
    assert b"Traceback" not in shown
    model, tokenizer = pretrained.load(tmp_path / "out" / "model", CPU)
    assert fill([Sentence(f"the {MASK}", "")], model, tokenizer, 1, CPU)[0]["masks"]
    steps = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["progress"]["step"]
    done = command("train_mlm.py", *flags, "--max-steps", steps + 2, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "out" / "metrics.json")["steps"] == steps + 2


def test_the_first_signal_asks_to_stop_and_the_second_one_does_not_wait():
    from mlm.common.command_line import Interrupt

    handlers = [(kind, signal.getsignal(kind)) for kind in (signal.SIGINT, signal.SIGTERM)]
    try:
        interrupt = Interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not interrupt.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            interrupt(signal.SIGINT, None)
        interrupt.release()
        assert [(kind, signal.getsignal(kind)) for kind, _ in handlers] == handlers
    finally:
        for kind, handler in handlers:
            signal.signal(kind, handler)


def test_init_goes_on_with_a_models_weights_and_words(script, tmp_path, trained, training):
    """One careful step from a trained model leaves it as good as it was."""
    (tmp_path / "text.txt").write_text("\n".join(training), encoding="utf-8")
    flags = ["--corpus", tmp_path / "text.txt", "--init", trained / "model", "--output", tmp_path / "out"]
    status, _, stderr = script("train_mlm", *flags, "--max-steps", 1, "--learning-rate", 1e-6)
    assert status == 0, stderr
    before, after = (pretrained.load(path / "model", CPU)[0] for path in (trained, tmp_path / "out"))
    assert after.config == before.config
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert read_json(tmp_path / "out" / "metrics.json")["held_out_accuracy"] > 0.5


# ---- fill_mask.py


def test_the_model_fills_what_it_was_taught(script, trained, training):
    hidden = [" ".join([*line.split()[:2], MASK, *line.split()[3:]]) for line in training]
    status, out, stderr = script("fill_mask", "--model", trained / "model", "--json", *hidden)
    assert status == 0 and stderr == ""
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["input"] for result in results] == hidden
    right = [result["filled"] == line for result, line in zip(results, training, strict=True)]
    assert sum(right) >= 14, [result["filled"] for result in results]


def test_standard_input_is_read_line_by_line(command, trained, tmp_path):
    stdin = "\ufeffthe cat [MASK] the small mouse\r\n\nour [MASK] drives a blue car\n".encode()
    done = command("fill_mask.py", "--model", trained / "model", "--top-k", 1, cwd=tmp_path, stdin=stdin)
    assert done.returncode == 0, done.stderr
    filled = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert filled == ["the cat chases the small mouse", "our doctor drives a blue car"]
    assert not list(tmp_path.iterdir())


def test_filled_sentences_follow_json_schema_and_probabilities_are_the_models(script, trained, loaded):
    sentence = "our [MASK] drives a [MASK] car"
    status, out, _ = script("fill_mask", "--model", trained / "model", "--json", "--top-k", 3, sentence)
    assert status == 0
    result = json.loads(out)
    assert set(result) == {"input", "filled", "masks"} and result["input"] == sentence
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer.encode(sentence).ids])
    with torch.no_grad():
        best = model(ids)[ids == tokenizer.token_to_id(MASK)].softmax(dim=-1).topk(3)
    assert len(result["masks"]) == 2
    for mask, tokens, probabilities in zip(result["masks"], best.indices, best.values, strict=True):
        assert [c["token"] for c in mask] == [tokenizer.id_to_token(token) for token in tokens.tolist()]
        assert [c["probability"] for c in mask] == pytest.approx(probabilities.tolist(), abs=1e-6)
        assert all(set(candidate) == {"token", "probability"} for candidate in mask)
    first, second = (mask[0]["token"] for mask in result["masks"])
    assert result["filled"] == f"our {first} drives a {second} car"


@pytest.mark.parametrize("top_k", [1, 2, 10**9])
def test_top_k_is_how_many_words_are_shown(script, trained, loaded, top_k):
    sentence = "the cat [MASK] the [MASK] mouse"
    _, out, _ = script("fill_mask", "--model", trained / "model", "--top-k", top_k, sentence)
    shown = min(top_k, loaded[0].config.vocab_size)
    assert len(out.splitlines()) == 1 + 2 * (1 + shown)
    assert "[MASK] 1" in out and "[MASK] 2" in out
    (result,) = fill([Sentence(sentence, "")], *loaded, top_k, CPU)
    for mask in result["masks"]:
        probabilities = [candidate["probability"] for candidate in mask]
        assert len(mask) == shown and probabilities == sorted(probabilities, reverse=True)
        assert shown < 70 or sum(probabilities) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_surprisal_is_that_of_each_token_hidden_alone(script, trained, loaded):
    sentence = "the dog chases the zebra ."
    status, out, stderr = script("fill_mask", "--model", trained / "model", "--score", "--json", sentence)
    assert status == 0 and "zebra" in stderr
    result = json.loads(out)
    assert set(result) == {"input", "pseudo_perplexity", "tokens"}
    model, tokenizer = loaded
    ids = tokenizer.encode(sentence).ids
    expected = []
    for position in range(1, len(ids) - 1):
        hidden = torch.tensor([ids])
        hidden[0, position] = tokenizer.token_to_id(MASK)
        expected.append(F.cross_entropy(model(hidden)[0, position], torch.tensor(ids[position])).item())
    assert [token["surprisal"] for token in result["tokens"]] == pytest.approx(expected, abs=1e-5)
    assert [token["token"] for token in result["tokens"]] == ["the", "dog", "chases", "the", "[UNK]", "[UNK]"]
    assert result["pseudo_perplexity"] == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)


def test_sentences_that_were_taught_are_less_surprising_than_nonsense(loaded, training):
    shuffled = " ".join(sorted(training[0].split()))
    results = score([Sentence(text, "") for text in (training[0], shuffled)], *loaded, CPU)
    assert 1 <= results[0]["pseudo_perplexity"] < results[1]["pseudo_perplexity"] / 5


def test_scores_do_not_depend_on_how_many_words_are_hidden_at_a_time(make_model, bpe):
    """A sentence of more tokens than are scored in one go."""
    model = make_model(bpe.get_vocab_size(), max_length=150)
    long = "my mother bakes sweet bread today near the river and my father paints the old door red " * 2
    ids = bpe.encode(long).ids
    assert len(ids) > 66
    (result,) = score([Sentence(long, "")], model, bpe, CPU)
    assert len(result["tokens"]) == len(ids) - 2
    hidden = torch.tensor([ids])
    hidden[0, 65] = 4
    expected = F.cross_entropy(model(hidden)[0, 65], torch.tensor(ids[65])).item()
    assert result["tokens"][64]["surprisal"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_many_sentences_are_answered_as_each_alone_is(loaded, training, monkeypatch, batch_tokens):
    monkeypatch.setattr("filling.BATCH_TOKENS", batch_tokens)
    texts = [training[0], *training[3:9], "the cat", f"{training[1]} {training[2]}"]
    hidden = [Sentence(text.replace(" ", f" {MASK} ", 1), "") for text in texts]
    close = {"rel": 1e-4, "abs": 1e-6}
    for one, among in zip(hidden, fill(hidden, *loaded, 3, CPU), strict=True):
        (alone,) = fill([one], *loaded, 3, CPU)
        assert (among["input"], among["filled"]) == (alone["input"], alone["filled"])
        for a, b in zip(among["masks"][0], alone["masks"][0], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], **close)
    whole = [Sentence(text, "") for text in texts]
    for one, among in zip(whole, score(whole, *loaded, CPU), strict=True):
        (alone,) = score([one], *loaded, CPU)
        assert among["pseudo_perplexity"] == pytest.approx(alone["pseudo_perplexity"], rel=1e-4)
        assert [token["token"] for token in among["tokens"]] == [token["token"] for token in alone["tokens"]]


def test_more_lines_than_are_held_at_a_time(trained, command, tmp_path):
    lines = [f"the cat {MASK} the small mouse", f"our {MASK} drives a blue car"] * 600
    stdin = "\n".join(lines).encode()
    done = command("fill_mask.py", "--model", trained / "model", "--json", cwd=tmp_path, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == lines


def test_a_person_reads_sentence_perplexity_and_words(script, trained):
    _, out, _ = script("fill_mask", "--model", trained / "model", "--score", "the cat chases the small mouse")
    lines = out.splitlines()
    assert lines[0] == "the cat chases the small mouse" and "pseudo-perplexity" in lines[1]
    assert [line.split()[-1] for line in lines[2:]] == lines[0].split()


def test_an_unknown_word_is_shown_as_unknown(script, trained):
    sentence = "the zebra [MASK] the zebra gnu"
    status, out, stderr = script("fill_mask", "--model", trained / "model", sentence)
    assert status == 0
    assert stderr.count("\n") == 1 and "warning" in stderr and "[UNK]" in stderr
    assert stderr.count("zebra") == 1 and "gnu" in stderr
    assert out.startswith("the zebra ") and out.splitlines()[0].endswith(" the zebra gnu")


def test_at_a_prompt_a_mistake_is_shown_and_the_next_line_is_read(script, trained, monkeypatch):
    typed = iter(["the cat", "the cat [MASK] the small mouse", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    status, out, stderr = script("fill_mask", "--model", trained / "model", "--top-k", 1, terminal=True)
    assert status == 0 and "no [MASK]" in stderr
    assert out.splitlines()[0] == "the cat chases the small mouse"


def test_a_reader_that_goes_away_is_no_error(trained, folder, tmp_path):
    """As in `fill_mask.py ... | head -1`."""
    line = [sys.executable, str(folder / "fill_mask.py"), "--model", str(trained / "model"), "--top-k", "70"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*line, *["the [MASK] [MASK] [MASK]"] * 60],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process:
        assert process.stderr.read() == b""
    assert process.returncode == 1


# ---- visualize_attention.py


@pytest.fixture
def draw(script, trained, tmp_path):
    """draw(*flags) runs the script on the trained model -> its standard output, the pictures' sizes."""

    def run(*flags):
        output = tmp_path / "pictures"
        status, out, stderr = script("visualize_attention", "--model", trained / "model", "--output", output, *flags)
        assert status == 0, stderr
        names = ["attention_heads.png", "attention_heatmap.png"]
        assert sorted(path.name for path in output.iterdir()) == names
        assert out.split() == [str(output / "attention_heatmap.png"), str(output / "attention_heads.png")]
        return [png_size(output / name) for name in names]

    return run


@pytest.mark.parametrize(
    "flags",
    [
        ["the cat [MASK] the small mouse"],
        ["the cat chases the small mouse"],
        ["cat"],
        ["--layer", 2, "--head", 1, "our [MASK] drives a [MASK] car"],
        ["costs $5, $\\x$ and $_^{a}"],
        ["the cat " * 11],
    ],
)
def test_two_pictures_of_sensible_size(draw, flags):
    """Whatever is in the sentence, up to the longest that the model takes."""
    for width, height in draw(*flags):
        assert 300 < width < 4000 and 300 < height < 4000


def test_a_long_sentence_has_a_picture_that_fits_into_memory(tmp_path, monkeypatch):
    """512 words, the longest sentence of most models, make a picture of at most 10,000 dots a side."""
    import visualize_attention as script

    drawn = []

    def measure(self, path, dpi, **_):
        drawn.append(self.get_size_inches() * dpi)
        path.touch()

    monkeypatch.setattr(script.plt.Figure, "savefig", measure)
    script.draw_map(torch.eye(512), ["word"] * 512, ["word"] * 512, "title", tmp_path / "map.png")
    assert len(drawn) == 1 and drawn[0].max() <= 10_000


def test_a_map_is_that_of_the_layer_and_head_asked_for(script, trained, tmp_path, loaded, monkeypatch):
    import visualize_attention

    model, tokenizer = loaded
    drawn = []
    monkeypatch.setattr(visualize_attention, "draw_map", lambda *args: drawn.append(args))
    monkeypatch.setattr(visualize_attention, "draw_heads", lambda *args: drawn.append(args))
    sentence = "the cat [MASK] the small zebra"
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(sentence).ids])
        weights = torch.stack(model.encoder(ids, need_weights=True)[1])[:, 0]
    wanted = {
        (): weights.mean((0, 1)),
        (2,): weights[1].mean(0),
        (2, 1): weights[1, 0],
        (None, 2): weights[:, 1].mean(0),
    }
    for (layer, head), expected in (((*key, None, None)[:2], value) for key, value in wanted.items()):
        flags = [*(["--layer", layer] if layer else []), *(["--head", head] if head else [])]
        flags += ["--model", trained / "model", "--output", tmp_path]
        assert script("visualize_attention", *flags, sentence)[0] == 0
        chosen, rows, columns, title, _ = drawn[-2]
        torch.testing.assert_close(chosen, expected)
        assert rows == ["[CLS]", "the", "cat", f"{MASK} → chases", "the", "small", "[UNK]", "[SEP]"]
        assert columns == ["[CLS]", "the", "cat", MASK, "the", "small", "[UNK]", "[SEP]"]
        assert title.startswith(sentence) and ("layer 2" in title) == (layer == 2)
        torch.testing.assert_close(drawn[-1][0], weights)


def test_entropy_is_in_bits():
    from visualize_attention import entropy

    weights = torch.stack([torch.eye(4), torch.full((4, 4), 0.25), torch.tensor([[0.5, 0.5, 0, 0]] * 4)])
    torch.testing.assert_close(entropy(weights), torch.tensor([0.0, 2.0, 1.0]))


# ---- all of them


@pytest.mark.parametrize("name", ["train_mlm", "fill_mask", "visualize_attention"])
def test_help_names_every_flag_and_an_example(script, name):
    status, out, stderr = script(name, "--help")
    assert status == 0 and stderr == ""
    assert "--device" in out and f"python3 {name}.py" in out
    promised = {
        "train_mlm": "--corpus --held-out --tokenizer --vocab-size --d-model --n-layers --n-heads --d-ff "
        "--dropout --max-length --epochs --max-steps --max-minutes --batch-tokens --learning-rate "
        "--warmup-steps --mask-prob --precision --seed --resume --output",
        "fill_mask": "--model --top-k --score --json",
        "visualize_attention": "--model --output --layer --head --html",
    }[name]
    assert [flag for flag in promised.split() if flag not in out] == []


def test_special_tokens_of_the_text_are_no_sentence_ends(script, trained):
    """Someone who writes [SEP] gets an answer, not a crash."""
    sentence = " ".join(["the", *SPECIAL_TOKENS, "cat"])
    assert script("fill_mask", "--model", trained / "model", "--top-k", 1, sentence)[0] == 0


def test_starting_imports_only_what_is_used(trained):
    """PyTorch's compiler alone takes as long to import as PyTorch itself."""
    flags = ["--model", trained / "model", "--device", "cpu", "Paris is the [MASK] of France"]
    command = [sys.executable, "-X", "importtime", FOLDER / "fill_mask.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "tokenizers"} <= imported
    assert not imported & {"torch._dynamo", "sympy", "matplotlib", "transformers"}
