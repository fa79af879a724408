"""Model directories: one that is damaged, or was made to do harm, is refused in one line that names what is wrong;
one that is written over is replaced whole or not at all."""

import math
import stat

import pytest
import torch
from hf_bert import save_bert
from mlm_strangers import MODELS, config, little_memory, tokenizer_json

from mlm import bert
from mlm.common import model_directory
from mlm.common.errors import InputError

CPU = torch.device("cpu")
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def directory(tmp_path, tiny, tokenizer):
    """A model directory that save wrote."""
    bert.save(tmp_path / "model", tiny, tokenizer)
    return tmp_path / "model"


def refuse(directory, *fragments):
    """load refuses the directory in one line that contains all fragments."""
    with pytest.raises(InputError) as error, little_memory():
        bert.load(directory, CPU)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments), message
    return message


# ---- reading


@pytest.mark.parametrize(("damage", "reason"), MODELS.values(), ids=MODELS)
def test_a_damaged_directory_is_refused(directory, damage, reason, monkeypatch):
    """With little memory, and leaving no trace of a pickle that is opened."""
    monkeypatch.chdir(directory.parent)
    damage(directory)
    before = set(directory.parent.rglob("*"))
    assert refuse(directory, reason).startswith(str(directory))
    assert set(directory.parent.rglob("*")) == before


@pytest.mark.parametrize("field", bert.FIELDS.values(), ids=lambda field: field.name)
def test_a_value_outside_the_range_of_its_field_is_refused(directory, field):
    wrong = [None, "16", [70]]
    if field.values:
        wrong += [field.values.low - 1, field.values.high + 1, 10**30, True, math.nan, math.inf]
    if not field.values or field.values.kind is int:
        wrong += [1.0, 16.5]
    for value in wrong:
        config(**{field.name: value})(directory)
        refuse(directory, f"config.json: {field.name} needs", f"not {value!r}")


def test_a_folder_without_a_model_is_refused_with_a_remedy(tmp_path):
    refuse(tmp_path, f"{tmp_path}: no model here (no config.json); run train_mlm.py first, or name another directory")
    refuse(tmp_path / "typo", "typo: no model here")


@pytest.mark.parametrize("longest", [10**9, 0, "a", None, 100.5])
def test_a_tokenizer_that_would_take_hours_over_a_word_is_refused(tmp_path, longest):
    save_bert(tmp_path)
    model = {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0}, "max_input_chars_per_word": longest}
    tokenizer_json(model=model)(tmp_path)
    refuse(tmp_path, f"takes words of {longest!r} characters; at most 1,000 are")


def test_a_missing_or_damaged_shard_is_refused(tmp_path):
    save_bert(tmp_path, shards=True)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:50])
    refuse(tmp_path, shard.name, "damaged")
    shard.unlink()
    refuse(tmp_path, shard.name, "missing")


# ---- writing


def test_a_directory_has_these_files_and_whoever_reads_one_reads_all(directory):
    assert {path.name for path in directory.iterdir()} == FILES
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("stage", ["tokenizer", "weights"])
def test_a_save_that_fails_leaves_the_previous_directory_as_it_was(directory, make_model, monkeypatch, stage):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    class FullDisk:
        def save(self, path):
            if stage == "tokenizer":
                raise OSError(28, "No space left on device", path)

    def full(*_, **__):
        raise OSError(28, "No space left on device", "model.safetensors")

    if stage == "weights":
        monkeypatch.setattr(model_directory, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        bert.save(directory, make_model(50, seed=1), FullDisk())
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("moves", range(4))
def test_a_save_that_is_cut_short_leaves_no_mixture_of_two_models(
    directory, tiny, tokenizer, make_model, monkeypatch, moves
):
    """As by a kill: so many files are moved in, and no more."""
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    left, replace = iter(range(moves)), model_directory.replace

    def cut_short(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(model_directory, "replace", cut_short)
    other = make_model(tiny.config.vocab_size, seed=1)  # of the same shapes
    with pytest.raises(KeyboardInterrupt):
        bert.save(directory, other, tokenizer)
    with pytest.raises(InputError, match="no model here"):
        bert.load(directory, CPU)
    monkeypatch.setattr(model_directory, "replace", replace)
    bert.save(directory, other, tokenizer)
    loaded, _ = bert.load(directory, CPU)
    assert all(map(torch.equal, loaded.state_dict().values(), other.state_dict().values()))
    assert {path.name for path in directory.iterdir()} == FILES


def test_saving_over_a_model_replaces_it(directory, make_model, bpe):
    model = make_model(bpe.get_vocab_size(), seed=5, n_layers=1)
    (directory / ".saving-and-killed").mkdir()
    bert.save(directory, model, bpe)
    loaded, tokenizer = bert.load(directory, CPU)
    assert {path.name for path in directory.iterdir()} == FILES
    assert loaded.config == model.config and tokenizer.get_vocab() == bpe.get_vocab()


def test_a_saved_model_replaces_one_in_shards(tmp_path, tiny, tokenizer):
    save_bert(tmp_path, shards=True)
    bert.save(tmp_path, tiny, tokenizer)
    for name, value in bert.load(tmp_path, CPU)[0].state_dict().items():
        assert torch.equal(value, tiny.state_dict()[name])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_called_that(directory, name):
    """As a clone without Git LFS has it in place of the file."""
    (directory / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    refuse(directory, f"{directory / name}: is a Git LFS pointer", "run git lfs pull")


def test_nothing_is_left_of_the_model_that_was_there(directory, make_model, bpe, tmp_path):
    left = "vocab.txt", "added_tokens.json", "special_tokens_map.json", "pytorch_model.bin", "model-1-of-2.safetensors"
    for folder in (directory, tmp_path / "notes"):
        folder.mkdir(exist_ok=True)
        for name in (*left, "notes.txt"):
            (folder / name).write_text("of another model")
        bert.save(folder, make_model(bpe.get_vocab_size()), bpe)
    assert {path.name for path in directory.iterdir()} == FILES | {"notes.txt"}
    assert {path.name for path in (tmp_path / "notes").iterdir()} == FILES | {*left, "notes.txt"}  # was no model


def test_shapes_are_compared_before_numbers_are_read(directory, monkeypatch):
    """A large file that does not fit takes no memory."""
    config(hidden_size=32)(directory)
    monkeypatch.setattr(model_directory, "numbers_of", None)
    refuse(directory, "do not fit config.json")
