"""A model directory in Hugging Face's layout, read as if a stranger had written it, and written whole or not at
all. Nothing is unpickled, and no code from a directory is run."""

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import InputError, naming
from .files import check_name, fsync_files, refuse_lfs_pointer, replace

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MODEL_FILES = (  # of whatever model, which may say something else than the one that is written over it
    *("config.json", "generation_config.json", WEIGHTS, INDEX, "model-*-of-*.safetensors", "pytorch_model*.bin"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "source.spm", "target.spm"),
)
# Our name of a tensor -> Hugging Face's, or those of the tensors which, stacked, make ours.
Names = dict[str, list[str]]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    with naming(path):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            refuse_lfs_pointer(path)
            raise InputError("is not a JSON object; the model directory is damaged")
    return content


def check_supported(content: dict[str, Any], model_type: str, required: dict[str, Any]) -> None:
    """Refuse a config.json of another type of model, or with another value where one is required."""
    if content.get("model_type") != model_type:
        found = content.get("model_type")
        raise InputError(f"model_type is {found!r}; supported is {model_type!r}, so name the directory of such a model")
    for field, supported in required.items():
        if content.get(field, supported) != supported:
            raise InputError(f"{field} is {content[field]!r}; supported is {supported!r}")


def check_is_model(directory: Path, script: str, setting: str) -> None:
    """Refuse a directory without a model. script: which makes one; setting: the field that names the directory."""
    check_name(directory)
    if not (directory / "config.json").is_file():
        remedy = f"run {script} first, or name another directory"
        if (directory / "model" / "config.json").is_file():
            remedy = f"there is one in {directory / 'model'}"
        raise InputError(f"{directory}: no model here (no config.json); {remedy}", setting)


def weight_files(directory: Path) -> list[Path]:
    """Return model.safetensors or, without it, the shards that its index names."""
    there = {file.name for file in directory.iterdir() if file.is_file()}
    names = [WEIGHTS]
    if WEIGHTS not in there and INDEX in there:
        shards = read_json(directory / INDEX).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    paths = [directory / Path(name).name for name in names]  # a shard lies in the directory, whatever the index says
    for path in paths:
        if path.name not in there:
            pickled = "pytorch_model.bin" in there
            hint = "pytorch_model.bin is a pickle, which is never read; save as safetensors"
            raise InputError(f"{path}: is missing; {hint if pickled else 'train or download it again'}")
    return paths


def read_tensors(paths: list[Path], is_unused: Callable[[str], bool], shapes_only: bool = False) -> dict[str, Tensor]:
    """Read the tensors of these files as fp32, but for those for which is_unused(name) is true: copies, which stay as
    they are when a file is overwritten. shapes_only: read no numbers, and return tensors without storage."""
    tensors = {}
    for path in paths:
        with naming(path):
            try:
                with safe_open(path, "pt") as file:
                    for name in [name for name in file.keys() if not is_unused(name)]:  # noqa: SIM118
                        tensors[name] = shape_of(name, file) if shapes_only else numbers_of(name, file)
            except InputError:
                raise
            except Exception as error:  # the library and PyTorch raise many kinds
                refuse_lfs_pointer(path)
                raise InputError(f"is damaged ({error}); train or download it again") from None
    return tensors


def shape_of(name: str, file: Any) -> Tensor:
    """Return a tensor of an open file without its numbers."""
    return torch.empty(file.get_slice(name).get_shape(), device="meta")


def numbers_of(name: str, file: Any) -> Tensor:
    """Return a tensor of an open file as fp32."""
    tensor = file.get_tensor(name)
    if not tensor.is_floating_point():
        raise InputError(f"{name} is {tensor.dtype}, not a floating-point type; download it again")
    tensor = tensor.to(torch.float32, copy=True)
    if not tensor.isfinite().all():
        raise InputError(f"{name} contains NaN or infinity; use other weights")
    return tensor


def unite(tensors: dict[str, Tensor], name: str, copies: Collection[str]) -> dict[str, Tensor]:
    """Return tensors with one of them, that may stand under several names, under `name` alone."""
    found = [one for one in (name, *copies) if one in tensors]
    for copy in found[1:]:
        first, other = tensors[found[0]], tensors[copy]
        if first.shape != other.shape or not (first.is_meta or torch.equal(first, other)):
            raise InputError(f"{copy} differs from {found[0]}; only models in which they are equal are supported")
    rest = {one: tensor for one, tensor in tensors.items() if one not in copies}
    return rest | {name: tensors[found[0]]} if found else rest


def fuse(tensors: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return tensors under our names, those that make a fused one stacked; what is missing is left out."""
    for theirs in names.values():  # those that make a fused one are alike
        shapes = {tuple(tensors[name].shape) for name in theirs if name in tensors}
        if len(shapes) > 1:
            raise InputError(f"weights of different shapes, {summarize(sorted(map(str, shapes)))}: {summarize(theirs)}")
    return {
        ours: stack([tensors[name] for name in theirs])
        for ours, theirs in names.items()
        if all(name in tensors for name in theirs)
    }


def stack(parts: list[Tensor]) -> Tensor:
    """Stack tensors of one shape. Those without storage are not given to torch.cat, for which PyTorch would import
    its compiler, and that takes as long as importing PyTorch itself."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if first.is_meta:
        return first.new_empty((len(parts) * (first.size(0) if first.ndim else 1), *first.shape[1:]))
    return torch.cat(parts)


def split(weights: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return our weights under Hugging Face's names, fused ones split."""
    tensors = {}
    for ours, theirs in names.items():
        for name, part in zip(theirs, weights[ours].cpu().chunk(len(theirs)), strict=True):
            tensors[name] = part.clone()
    return tensors


class SkipInit(TorchFunctionMode):
    """Inside this context initial weights are not drawn, as those of a file replace them. To draw weights without
    storage PyTorch would import its compiler, too."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def build(
    directory: Path,
    make: Callable[[], nn.Module],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    names: Iterable[str],
    is_unused: Callable[[str], bool],
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Make a model with the weights of a directory -> the model, and the tensors of the files.

    convert: from tensors under the names of the files to those under ours, which are `names`; it is called with
    tensors that have shapes alone first, so that no number is read before all shapes fit. is_unused(name) is true
    for tensors that are not read.
    """
    paths = weight_files(directory)
    shapes = read_tensors(paths, is_unused, shapes_only=True)
    with naming(directory):
        weights = convert(shapes)
        if missing := [f"{name} is missing" for name in names if name not in weights]:
            raise InputError(f"the weights do not fit config.json: {summarize(missing)}")
        with torch.device("meta"), SkipInit():
            model = make()
        wrong = [
            f"{name} is {list(weights[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in model.state_dict().items()
            if weights[name].shape != tensor.shape
        ]
        if wrong:
            raise InputError(f"the weights do not fit config.json: {summarize(wrong)}")
    tensors = read_tensors(paths, is_unused)
    with naming(directory):
        model.load_state_dict(convert(tensors), assign=True)
    return model, tensors


def write_directory(
    directory: Path,
    contents: dict[str, dict],
    tensors: dict[str, Tensor],
    save_tokenizer: Callable[[Path], Any],
) -> None:
    """Write a model directory.

    contents: the JSON files, config.json among them; save_tokenizer writes its files into a folder. Files of the
    model that was there are removed unless they are written. Every file is written beside its place first, then all
    are moved in. config.json, without which there is no model, is removed first and moved in last: a kill in
    between leaves no mixture of two models that could be taken for one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(".saving-*"):  # by a save that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as name:
        folder = Path(name)
        for file, content in contents.items():
            (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        try:
            save_tokenizer(folder)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        except OSError:
            raise
        except Exception as error:  # the libraries' own kinds, for a full disk as well
            raise InputError(f"{directory}: cannot be written ({error}); what was there is unchanged") from None
        shutil.copymode(folder / "config.json", folder / WEIGHTS)  # else for its owner alone
        fsync_files(folder)
        written = {file.name for file in folder.iterdir()}
        old = {file.name for file in directory.iterdir() if any(file.match(one) for one in MODEL_FILES)}
        is_model = not old.isdisjoint({"config.json", WEIGHTS, INDEX})
        for name in ("config.json", *(old - written if is_model else ())):
            (directory / name).unlink(missing_ok=True)
        for name in (*(written - {"config.json"}), "config.json"):
            replace(folder / name, directory / name)


def summarize(items: list[str]) -> str:
    """Return the first few of a list as text, and how many more there are."""
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
