"""Pairs in any number: tokenized once, whole or not at all, used again while nothing has changed, read and
planned a part at a time. LINES=10000000 lets the last test measure many; -s shows its figures."""

import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from seq2seq.common import token_store as store
from seq2seq.common.batching import Plan
from seq2seq.common.distributed import Team
from seq2seq.common.errors import InputError
from seq2seq.common.token_store import Sequences, Store, Writer, gathered, mapped
from seq2seq.dataset import PairCorpus, tokenize
from seq2seq.metrics import MOST_COMPARED
from seq2seq.pairs import Pairs
from seq2seq.tokenizer import IGNORE

FOLDER = Path(train.__file__).parent
CPU = torch.device("cpu")
properties = settings(deadline=None, max_examples=60, derandomize=True, database=None)


# ---- plans


def sequences(lengths):
    lengths = np.array(lengths)
    return Sequences(np.arange(lengths.sum()), lengths, np.concatenate([[0], np.cumsum(lengths)]))


def greedy(sides, batch_tokens, rng):
    """The plan of a corpus that is planned as a whole, sequence by sequence."""
    order = rng.permutation(len(sides[0]))
    order = order[np.lexsort([side.lengths[order] for side in sides])].tolist()
    batches, width = [[order[0]]], max(side.lengths[order[0]] for side in sides)
    for i in order[1:]:
        longest = max(side.lengths[i] for side in sides)
        if (len(batches[-1]) + 1) * max(width, longest) > batch_tokens:
            batches.append([])
            width = 0
        batches[-1].append(i)
        width = max(width, longest)
    return [batches[i] for i in rng.permutation(len(batches))]


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=80)


@properties
@given(LENGTHS, st.integers(1, 150), st.integers(0, 1000))
def test_a_corpus_of_one_block_is_planned_as_a_whole(lengths, batch_tokens, seed):
    for sides in ([sequences(side) for side in zip(*lengths, strict=True)], [sequences(lengths[0])]):
        plan = Plan(sides, batch_tokens, [seed, 3])
        assert [batch.tolist() for batch in plan] == greedy(sides, batch_tokens, np.random.default_rng([seed, 3]))


@properties
@given(LENGTHS, st.integers(1, 150), st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5))
def test_a_plan_in_blocks_takes_all_once_and_is_the_same_from_any_position(lengths, batch_tokens, seed, chunk, chunks):
    sides = [sequences(side) for side in zip(*lengths, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "CHUNK", chunk)
        patch.setattr(store, "BLOCK", chunk * chunks)
        plan = [batch.tolist() for batch in Plan(sides, batch_tokens, [seed, 0])]
        assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
        for batch in plan:
            widths = [max(lengths[i]) for i in batch]
            assert len(batch) * max(widths) <= batch_tokens or len(batch) == 1
        again = Plan(sides, batch_tokens, [seed, 0])
        assert len(again) == len(plan) == len(Plan(sides, batch_tokens, [seed, 1]))
        for position in random.Random(seed).sample(range(len(plan)), len(plan)):
            assert again[position].tolist() == plan[position]
        with pytest.raises(IndexError):
            again[len(plan)]


def test_blocks_have_something_of_the_whole_corpus_and_come_in_another_order_every_epoch(monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 4)
    monkeypatch.setattr(store, "BLOCK", 64)
    sides = [sequences([5] * 640)]
    orders = []
    for epoch in range(3):
        plan = Plan(sides, 5 * 16, [0, epoch])
        blocks = [np.concatenate([plan[4 * place + i] for i in range(4)]) for place in range(10)]
        orders.append([int(block.min()) for block in blocks])
        for block in blocks:
            assert len(block) == 64 and np.diff(np.sort(block)).max() <= 40
    assert sorted(orders[0]) == sorted(orders[1]) == [4 * i for i in range(10)]
    assert orders[0] != orders[1] != orders[2]


# ---- files


@pytest.fixture
def files(tmp_path, write_pairs, training, held_out):
    """A file of some hundred pairs, long and short, some of them odd, and a file of held-out pairs."""
    rng = random.Random(1)
    rows = []
    for i in range(300):
        chosen = rng.choices(training, k=rng.randint(1, 3))
        rows.append((f"{i} " + " ".join(c[0] for c in chosen), " ".join(c[1] for c in chosen), ""))
    write_pairs(tmp_path / "pairs.tsv", [*rows, *held_out, ("odd",), ("", "empty", "")])
    return tmp_path / "pairs.tsv", write_pairs(tmp_path / "held.tsv", held_out)


def filled(files, tokenizer, folder, max_length=16):
    pairs = Pairs([files[0]], files[1], (None, None), 0)
    tokens = Store(folder / "tokens", pairs.recipe)
    tokenize(pairs, tokenizer, max_length, tokens)
    return pairs, tokens


def same_batches(one, other):
    for mine, others in zip(one.plan(100, 5), other.plan(100, 5), strict=True):
        a, b = one.batch(mine), other.batch(others)
        assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_what_is_read_from_disk_is_what_is_made_in_memory(files, tokenizer, tmp_path):
    pairs, tokens = filled(files, tokenizer, tmp_path)
    on_disk, in_memory = PairCorpus.open(tokens, tokenizer), PairCorpus.of(pairs, tokenizer, 16)
    assert on_disk.source.ids.dtype == np.uint16 and len(on_disk.source.maps) == 3
    assert not in_memory.source.maps and 100 < len(on_disk) == len(in_memory) < 300
    same_batches(on_disk, in_memory)
    on_disk.source.release()
    same_batches(on_disk, in_memory)
    assert on_disk.batch(np.array([0])).labels[0, -1] == 0 != IGNORE
    notes = {"held_out": [], "pairs": 300, "left_out": 3, "skipped": [[1, 1, 305, 3]]}
    assert tokens.read() == notes


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_ids_of_any_vocabulary_are_written(tmp_path, vocab_size, dtype):
    pieces = [(np.array([0, vocab_size - 1, 5]), np.array([1, 2])), (np.array([7]), np.array([1]))]
    with Writer(tmp_path, "some", vocab_size) as writer:
        for ids, lengths in pieces:
            writer.append(ids, lengths)
    assert len(writer) == 3
    for written, wanted in zip(mapped(tmp_path, "some"), gathered(pieces), strict=True):
        assert written.tolist() == wanted.tolist()
    assert mapped(tmp_path, "some")[0].dtype == dtype


# ---- whole or not at all


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def failing(monkeypatch):
    """failing(error) lets the writing of token ids fail midway."""

    def fail(error):
        append = store.Column.append

        def half(column, values):
            append(column, values[: len(values) // 2])
            if len(values) > 1:
                raise error

        monkeypatch.setattr(store.Column, "append", half)

    return fail


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_tokenization_leaves_nothing(files, tokenizer, tmp_path, failing, error):
    before = contents(tmp_path)
    failing(error)
    with pytest.raises(type(error)):
        filled(files, tokenizer, tmp_path / "new" / "output")
    assert contents(tmp_path) == before


def test_an_interrupted_tokenization_leaves_what_was_there(files, tokenizer, tmp_path, failing):
    filled(files, tokenizer, tmp_path)
    before = contents(tmp_path)
    failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        filled(files, tokenizer, tmp_path)
    assert contents(tmp_path) == before


def test_a_full_disk_is_one_line(files, script, sizes, tmp_path, failing):
    failing(OSError(28, "No space left on device"))
    before = contents(tmp_path)
    status, out, err = script("train", "--pairs", files[0], "--output", tmp_path / "out", *sizes)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert f"{tmp_path / 'out' / 'tokens'}: No space left on device; make room" in err
    assert contents(tmp_path) == before


KILLED = """
import os, sys, train, store
append = store.Column.append
def half(column, values):
    append(column, values)
    if column.length > 1000:
        os.kill(os.getpid(), 9)
store.Column.append = half
train.run(train.main)
"""


def test_a_killed_tokenization_is_not_used(files, script, sizes, tmp_path):
    flags = ["--pairs", files[0], "--output", tmp_path / "out", *sizes, "--max-steps", 2]
    line = [sys.executable, "-c", KILLED, *map(str, flags)]
    done = subprocess.run(line, cwd=FOLDER, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokens.part"]
    assert script("train", *flags)[0] == 0
    assert not (tmp_path / "out" / "tokens.part").exists()


def test_a_folder_of_the_users_own_is_left_alone(files, script, sizes, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "thesis.txt").write_text("years of work")
    flags = ["--pairs", files[0], "--output", tmp_path, *sizes, "--max-steps", 1]
    status, _, err = script("train", *flags)
    assert (status, err.count("\n")) == (2, 1) and "something else is there; move it away" in err
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["thesis.txt"]


# ---- used again


@pytest.fixture
def prepare(files, sizes, tmp_path, monkeypatch):
    """prepare(*flags) -> the Run that train.py begins, and whether it had to tokenize."""

    def begin(*flags):
        line = ["--pairs", files[0], "--output", tmp_path / "out", *sizes, *flags]
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, line)])
        calls = []
        with monkeypatch.context() as patch:
            for name in ("tokenize", "train_tokenizer"):
                old = getattr(train, name)
                patch.setattr(train, name, lambda *a, name=name, old=old: calls.append(name) or old(*a))
            run, tokenizer = train.prepare(train.parse_args(), Team(CPU))
        return run, tokenizer, calls

    return begin


def made_from(run):
    """Of what may not change when a run is resumed, what its token ids depend on."""
    return [run.identity[name] for name in ("files", "held_out", "vocabulary", "max_length")]


def test_unchanged_pairs_are_used_again_and_warned_about_again(prepare, files, capsys):
    first, tokenizer, calls = prepare()
    shown = [capsys.readouterr().err]
    assert calls == ["train_tokenizer", "tokenize"]
    os.utime(files[0], (1, 1))
    again, same, calls = prepare("--learning-rate", 0.1, "--d-ff", 32)
    shown.append(capsys.readouterr().err)
    assert calls == [] and same.to_str() == tokenizer.to_str()
    assert again.pairs.held_out == first.pairs.held_out and len(first.pairs.held_out) > 10
    assert (again.pairs.kept, again.pairs.left_out) == (first.pairs.kept, first.pairs.left_out)
    first_warnings, warnings = (err.splitlines() for err in (shown[0], shown[1]))
    assert len(warnings) == 3 and warnings == first_warnings  # odd, empty, too long
    assert made_from(again) == made_from(first)
    same_batches(again.corpus, first.corpus)


@pytest.mark.parametrize(
    "flags",
    [["--tokenizer", "bpe"], ["--vocab-size", 300], ["--max-length", 14], ["--seed", 1], ["--held-out"]],
    ids=lambda flags: flags[0],
)
def test_another_way_of_tokenizing_makes_other_tokens(prepare, files, flags):
    first = prepare()[0]
    flags = [*flags, files[1]] if flags == ["--held-out"] else flags
    other, _, calls = prepare(*flags)
    assert calls == ["train_tokenizer", "tokenize"]
    assert made_from(other) != made_from(first)
    assert prepare(*flags)[2] == []


@pytest.mark.parametrize("which", [0, 1])
def test_other_pairs_make_other_tokens(prepare, files, which):
    held_out = ["--held-out", files[1]]
    prepare(*held_out)
    files[which].write_text(files[which].read_text() + "another\tpair\t\n")
    assert prepare(*held_out)[2] == ["train_tokenizer", "tokenize"]


def test_pairs_that_are_not_the_resumed_runs_leave_its_tokens(prepare, files, tmp_path):
    run = prepare()[0]
    run.progress.nll_tokens = 1
    run.evaluate()
    run.save()
    before = contents(tmp_path / "out")
    files[0].write_text("another\tpair\nand one\tmore\n")
    with pytest.raises(InputError, match="belongs to a run with files"):
        prepare("--resume")
    assert contents(tmp_path / "out") == before


def test_what_is_damaged_is_made_anew(prepare, tmp_path):
    prepare()
    tokens = tmp_path / "out" / "tokens"
    for content in ("", "[1]", '{"digest": 1}', '{"bytes": 1}', "\xff"):
        (tokens / "meta.json").write_text(content, encoding="latin-1")
        assert prepare()[2] == ["train_tokenizer", "tokenize"]
    for file in ("source.ids.npy", "tokenizer.json"):
        content = (tokens / file).read_bytes()
        (tokens / file).write_bytes(content[: len(content) // 2])
        assert prepare()[2] == ["train_tokenizer", "tokenize"]
        (tokens / file).unlink()
        assert prepare()[2] == ["train_tokenizer", "tokenize"]
        content = bytearray((tokens / file).read_bytes())
        content[-1] ^= 1
        (tokens / file).write_bytes(content)
        assert prepare()[2] == ["train_tokenizer", "tokenize"]


def test_a_run_in_blocks_is_resumed_exactly(prepare, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 8)
    monkeypatch.setattr(store, "BLOCK", 64)

    def go(*flags, steps):
        run = prepare("--max-steps", 40, *flags)[0]

        class Within:
            @property
            def asked(self):
                return run.progress.step + 1 >= steps  # in the last of them

        run.train(Within())
        return run

    whole = go(steps=40)
    go(steps=11)
    resumed = go("--resume", steps=40)
    assert resumed.plan(0).n_blocks >= 3 and resumed.progress.step == whole.progress.step == 40
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


# ---- memory


def test_what_is_held_of_the_pairs_does_not_grow_with_them(prepare, tmp_path, monkeypatch):
    """The peak of what Python and NumPy hold, from reading to the third step, after one run to warm up."""
    monkeypatch.setattr(store, "CHUNK", 16)
    monkeypatch.setattr(store, "BLOCK", 256)
    monkeypatch.setattr("reading.CHUNK", 100)
    pairs, held_out, peaks = tmp_path / "many.tsv", tmp_path / "held_out.tsv", []
    held_out.write_text("the cat sees no bird\tno bird is seen\n", encoding="utf-8")
    for lines in (1_000, 1_000, 40_000):
        rows = (f"the cat sees bird {i}\tbird {i} is seen\n" for i in range(lines))
        pairs.write_text("".join(rows), encoding="utf-8")
        tracemalloc.start()
        run, *_ = prepare("--pairs", pairs, "--held-out", held_out, "--vocab-size", 20)
        for position in range(3):
            run.update(run.plan(0)[position], 0.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert run.plan(0).n_blocks == 157
    assert peaks[2] < peaks[1] + 1_500_000


# ---- a large one

MEASURED = """
import sys, time
started = time.time()
import re, train, training
update = training.Run.update
def timed(self, *batch):
    seen = update(self, *batch)
    if self.progress.step == 1:
        print("first", time.time() - started)
    return seen
training.Run.update = timed
train.main()
status = open("/proc/self/status").read()
print("peak", int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path, sizes, training):
    """Peak memory (MiB) and seconds to the first step of a run of three, before and after tokenizing."""
    many = int(os.environ.get("LINES", "20000"))
    rng, words = np.random.default_rng(0), np.array(" ".join(row[0] for row in training).split())
    measured = {}
    held_out = tmp_path / "held_out.tsv"  # few, as each of them is answered in the end
    held_out.write_text("".join(f"{word}\t{word}\n" for word in words[:20]), encoding="utf-8")
    for lines in (many // 10, many):
        path = tmp_path / f"{lines}.tsv"
        with path.open("w", encoding="utf-8") as file:
            for start in range(0, lines, 10_000):
                n = min(10_000, lines - start)
                rows = words[rng.integers(len(words), size=(n, 12))]
                ends = rng.integers(4, 13, size=n).tolist()
                file.writelines(
                    f"{' '.join(row[:end])} {start + i}\t{start + i} {' '.join(row[:end:-1])}\n"
                    for i, (row, end) in enumerate(zip(rows.tolist(), ends, strict=True))
                )
        flags = ["--pairs", path, "--held-out", held_out, "--output", tmp_path / str(lines)]
        flags += [*sizes, "--max-steps", 3]
        for state in ("anew", "again"):
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, *map(str, flags), "--tokenizer", "bpe"],
                cwd=FOLDER,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            figures = dict(line.split() for line in done.stdout.splitlines() if line[:5] in ("first", "peak "))
            first, peak = float(figures["first"]), float(figures["peak"])
            measured[lines, state] = peak
            print(f"{lines:12,} lines, {state}: first step after {first:.1f} s, peak {peak:.0f} MiB")
        notes = json.loads((tmp_path / str(lines) / "tokens" / "meta.json").read_text())["notes"]
        assert notes["pairs"] + notes["left_out"] == lines
    assert max(measured.values()) < 1000
    kept = [min(lines, MOST_COMPARED) for lines in (many // 10, many)]  # by NearestPrompt
    assert measured[many, "again"] < measured[many // 10, "again"] + max(50, (kept[1] - kept[0]) / 1000)
