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
from seq2seq import dataset
from seq2seq.common import batching, lines, token_store
from seq2seq.common.batching import BatchSampler
from seq2seq.common.distributed import DistributedContext
from seq2seq.common.errors import InputError
from seq2seq.common.token_store import Sequences, SequenceWriter, TokenStore, concatenate, open_sequences
from seq2seq.dataset import Metadata, PairDataset, fill_store
from seq2seq.loss import IGNORE
from seq2seq.metrics import MAX_COMPARED
from seq2seq.pairs import Layout, PairFile, PairSource, read_pairs

FOLDER = Path(train.__file__).parent
CPU = torch.device("cpu")
properties = settings(deadline=None, max_examples=60, derandomize=True, database=None)


# ---- batches


def sequences(lengths):
    lengths = np.array(lengths)
    return Sequences(np.arange(lengths.sum()), lengths, np.concatenate([[0], np.cumsum(lengths)]))


def greedy(sides, batch_tokens, rng):
    """The batches of a corpus that is planned as a whole, sequence by sequence."""
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
        plan = BatchSampler(sides, batch_tokens, [seed, 3])
        assert [batch.tolist() for batch in plan] == greedy(sides, batch_tokens, np.random.default_rng([seed, 3]))


@properties
@given(LENGTHS, st.integers(1, 150), st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5))
def test_batches_in_blocks_take_all_once_and_is_the_same_from_any_position(lengths, batch_tokens, seed, chunk, chunks):
    sides = [sequences(side) for side in zip(*lengths, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "CHUNK", chunk)
        patch.setattr(batching, "BLOCK", chunk * chunks)
        plan = [batch.tolist() for batch in BatchSampler(sides, batch_tokens, [seed, 0])]
        assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
        for batch in plan:
            widths = [max(lengths[i]) for i in batch]
            assert len(batch) * max(widths) <= batch_tokens or len(batch) == 1
        again = BatchSampler(sides, batch_tokens, [seed, 0])
        assert len(again) == len(plan) == len(BatchSampler(sides, batch_tokens, [seed, 1]))
        for position in random.Random(seed).sample(range(len(plan)), len(plan)):
            assert again[position].tolist() == plan[position]
        with pytest.raises(IndexError):
            again[len(plan)]


def test_blocks_have_something_of_the_whole_corpus_and_come_in_another_order_every_epoch(monkeypatch):
    monkeypatch.setattr(batching, "CHUNK", 4)
    monkeypatch.setattr(batching, "BLOCK", 64)
    sides = [sequences([5] * 640)]
    orders, shuffles = [], []
    for epoch in range(3):
        plan = BatchSampler(sides, 5 * 16, [0, epoch])
        blocks = [np.concatenate([plan[4 * place + i] for i in range(4)]) for place in range(10)]
        orders.append([int(block.min()) for block in blocks])
        shuffles += [tuple(block.argsort()) for block in blocks]
        for block in blocks:
            assert len(block) == 64 and np.diff(np.sort(block)).max() <= 40
    assert sorted(orders[0]) == sorted(orders[1]) == [4 * i for i in range(10)]
    assert orders[0] != orders[1] != orders[2]
    assert len(set(shuffles)) == 30


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
    source = PairSource([PairFile(files[0])], read_pairs(files[1]))
    tokens = TokenStore(folder / "tokens", {"made of": "these"})
    return source, tokens, fill_store(tokens, source, [], tokenizer, max_length)


def same_batches(one, other):
    for mine, others in zip(one.batches(100, 5), other.batches(100, 5), strict=True):
        a, b = one.batch(mine), other.batch(others)
        assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_what_is_read_from_disk_is_what_is_made_in_memory(files, tokenizer, tmp_path):
    source, tokens, metadata = filled(files, tokenizer, tmp_path)
    on_disk, in_memory = PairDataset.on_disk(tokens, tokenizer), PairDataset.in_memory(source, tokenizer, 16)
    assert on_disk.source.ids.dtype == np.uint16 and len(on_disk.source.maps) == 3
    assert not in_memory.source.maps and 100 < len(on_disk) == len(in_memory) < 300
    same_batches(on_disk, in_memory)
    on_disk.source.release()
    same_batches(on_disk, in_memory)
    assert on_disk.batch(np.array([0])).labels[0, -1] == 0 != IGNORE
    layout = Layout(width=3, source=0, target=1, kind=2, header=True, n_lines=305, n_odd=1, n_empty=1, first_odd=305)
    assert Metadata.from_dict(tokens.read()) == metadata == Metadata([], [layout], 300)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_ids_of_any_vocabulary_are_written(tmp_path, vocab_size, dtype):
    pieces = [(np.array([0, vocab_size - 1, 5]), np.array([1, 2])), (np.array([7]), np.array([1]))]
    with SequenceWriter(tmp_path, "some", vocab_size) as writer:
        for ids, lengths in pieces:
            writer.append(ids, lengths)
    assert len(writer) == 3
    for written, wanted in zip(open_sequences(tmp_path, "some"), concatenate(pieces), strict=True):
        assert written.tolist() == wanted.tolist()
    assert open_sequences(tmp_path, "some")[0].dtype == dtype


# ---- whole or not at all


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def failing(monkeypatch):
    """failing(error) lets the writing of token ids fail midway."""

    def fail(error):
        append = token_store.GrowingColumn.append

        def half(column, values):
            append(column, values[: len(values) // 2])
            if len(values) > 1:
                raise error

        monkeypatch.setattr(token_store.GrowingColumn, "append", half)

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
    assert f"{tmp_path / 'out' / 'tokens'}: No space left on device; free some space" in err
    assert contents(tmp_path) == before


KILLED = """
import os, train
from seq2seq.common.token_store import GrowingColumn
append = GrowingColumn.append
def half(column, values):
    append(column, values)
    if column.length > 1000:
        os.kill(os.getpid(), 9)
GrowingColumn.append = half
train.run_script(train.main)
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
    """prepare(*flags) -> the trainer that train.py begins with, and what it had to make of the pairs."""

    def begin(*flags):
        line = ["--pairs", files[0], "--output", tmp_path / "out", *sizes, *flags]
        config, _ = train.parse_args(list(map(str, line)))
        calls = []
        with monkeypatch.context() as patch:
            for name in ("draw_held_out_pairs", "train_tokenizer", "fill_store"):
                old = getattr(dataset, name)
                patch.setattr(dataset, name, lambda *a, name=name, old=old: calls.append(name) or old(*a))
            trainer = train.build_trainer(config, DistributedContext(CPU))
        return trainer, calls

    return begin


EVERYTHING = ["draw_held_out_pairs", "train_tokenizer", "fill_store"]


def test_unchanged_pairs_are_used_again_and_warned_about_again(prepare, files, capsys):
    first, calls = prepare()
    warnings = capsys.readouterr().err.splitlines()
    assert calls == EVERYTHING
    os.utime(files[0], (1, 1))
    again, calls = prepare("--learning-rate", 0.1, "--d-ff", 32)
    assert calls == [] and again.data.tokenizer.to_str() == first.data.tokenizer.to_str()
    assert again.data.pairs.held_out == first.data.pairs.held_out and len(first.data.pairs.held_out) > 10
    assert len(warnings) == 3 and warnings == capsys.readouterr().err.splitlines()  # odd, empty, too long
    assert again.data.cache_key == first.data.cache_key
    same_batches(again.data.train, first.data.train)


@pytest.mark.parametrize(
    "flags",
    [["--tokenizer", "bpe"], ["--vocab-size", 300], ["--max-length", 14], ["--seed", 1], ["--held-out"]],
    ids=lambda flags: flags[0],
)
def test_another_way_of_tokenizing_makes_other_tokens(prepare, files, flags):
    first, _ = prepare()
    flags = [*flags, files[1]] if flags == ["--held-out"] else flags
    other, calls = prepare(*flags)
    assert calls == (EVERYTHING[1:] if "--held-out" in flags else EVERYTHING)
    assert other.data.cache_key != first.data.cache_key
    assert prepare(*flags)[1] == []


@pytest.mark.parametrize("which", [0, 1])
def test_other_pairs_make_other_tokens(prepare, files, which):
    held_out = ["--held-out", files[1]]
    prepare(*held_out)
    files[which].write_text(files[which].read_text() + "another\tpair\t\n")
    assert prepare(*held_out)[1] == EVERYTHING[1:]


def test_pairs_that_are_not_the_resumed_runs_leave_its_tokens(prepare, files, tmp_path):
    trainer, _ = prepare()
    trainer.progress.nll_tokens = 1
    trainer.progress.begin_part(epochs=1)
    trainer.evaluate()
    trainer.save()
    before = contents(tmp_path / "out")
    files[0].write_text("another\tpair\nand one\tmore\n")
    with pytest.raises(InputError, match="belongs to a run with other training text \\(files"):
        prepare("--resume")
    assert contents(tmp_path / "out") == before


def test_what_is_damaged_is_made_again(prepare, tmp_path):
    prepare()
    tokens = tmp_path / "out" / "tokens"
    for content in ("", "[1]", '{"digest": 1}', '{"bytes": 1}', "\xff"):
        (tokens / "meta.json").write_text(content, encoding="latin-1")
        assert prepare()[1] == EVERYTHING
    for file in ("source.ids.npy", "tokenizer.json"):
        content = (tokens / file).read_bytes()
        (tokens / file).write_bytes(content[: len(content) // 2])
        assert prepare()[1] == EVERYTHING
        (tokens / file).unlink()
        assert prepare()[1] == EVERYTHING
        content = bytearray((tokens / file).read_bytes())
        content[-1] ^= 1
        (tokens / file).write_bytes(content)
        assert prepare()[1] == EVERYTHING


def test_a_run_in_blocks_is_resumed_exactly(prepare, monkeypatch):
    monkeypatch.setattr(batching, "CHUNK", 8)
    monkeypatch.setattr(batching, "BLOCK", 64)

    def go(*flags, steps):
        trainer, _ = prepare("--max-steps", 40, *flags)

        class Within:
            @property
            def requested(self):
                return trainer.progress.step + 1 >= steps  # in the last of them

        trainer.train(Within())
        return trainer

    whole = go(steps=40)
    go(steps=11)
    resumed = go("--resume", steps=40)
    assert resumed.batches(0).n_blocks >= 3 and resumed.progress.step == whole.progress.step == 40
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


# ---- memory


def test_what_is_held_of_the_pairs_does_not_grow_with_them(prepare, tmp_path, monkeypatch):
    """The peak of what Python and NumPy hold, from reading to the third step, after one run to warm up."""
    monkeypatch.setattr(batching, "CHUNK", 16)
    monkeypatch.setattr(batching, "BLOCK", 256)
    monkeypatch.setattr(lines, "CHUNK_ITEMS", 100)
    pairs, held_out, peaks = tmp_path / "many.tsv", tmp_path / "held_out.tsv", []
    held_out.write_text("the cat sees no bird\tno bird is seen\n", encoding="utf-8")
    for n_lines in (1_000, 1_000, 40_000):
        rows = (f"the cat sees bird {i}\tbird {i} is seen\n" for i in range(n_lines))
        pairs.write_text("".join(rows), encoding="utf-8")
        tracemalloc.start()
        trainer, _ = prepare("--pairs", pairs, "--held-out", held_out, "--vocab-size", 20)
        for position in range(3):
            trainer.update(trainer.batches(0)[position], 0.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert trainer.batches(0).n_blocks == 158  # the fixture's own text is in front
    assert peaks[2] < peaks[1] + 1_500_000


# ---- a large one

MEASURED = """
import sys, time
started = time.time()
import re, train
update = train.Trainer.update
def timed(self, *batch):
    update(self, *batch)
    if self.progress.step == 1:
        print("first", time.time() - started)
train.Trainer.update = timed
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
    for n_lines in (many // 10, many):
        path = tmp_path / f"{n_lines}.tsv"
        with path.open("w", encoding="utf-8") as file:
            for start in range(0, n_lines, 10_000):
                n = min(10_000, n_lines - start)
                rows = words[rng.integers(len(words), size=(n, 12))]
                ends = rng.integers(4, 13, size=n).tolist()
                file.writelines(
                    f"{' '.join(row[:end])} {start + i}\t{start + i} {' '.join(row[:end:-1])}\n"
                    for i, (row, end) in enumerate(zip(rows.tolist(), ends, strict=True))
                )
        flags = ["--pairs", path, "--held-out", held_out, "--output", tmp_path / str(n_lines)]
        flags += [*sizes, "--max-steps", 3]
        for state in ("first", "again"):
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, *map(str, flags), "--tokenizer", "bpe", "--vocab-size", "8000"],
                cwd=FOLDER,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            figures = dict(line.split() for line in done.stdout.splitlines() if line[:5] in ("first", "peak "))
            first, peak = float(figures["first"]), float(figures["peak"])
            measured[n_lines, state] = peak
            print(f"{n_lines:12,} lines, {state} run: first step after {first:.1f} s, peak {peak:.0f} MiB")
        noted = json.loads((tmp_path / str(n_lines) / "tokens" / "meta.json").read_text())["metadata"]
        assert noted["layouts"][0]["n_lines"] == n_lines >= noted["n_pairs"]
    assert max(measured.values()) < 1000
    kept = [min(n_lines, MAX_COMPARED) for n_lines in (many // 10, many)]  # by NearestPrompt
    assert measured[many, "again"] < measured[many // 10, "again"] + max(50, (kept[1] - kept[0]) / 1000)
