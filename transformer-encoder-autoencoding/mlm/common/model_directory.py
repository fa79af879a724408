"""A model directory in Hugging Face's layout, read as if a stranger had written it, and written whole or not at
all. Nothing is unpickled, and no code from a directory is run."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import InputError
from .files import fsync_files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Our name of a tensor -> Hugging Face's, or those of the tensors which, stacked, make ours.
Names = dict[str, list[str]]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object; the model directory is damaged")
    return content


def check_supported(content: dict[str, Any], model_type: str, required: dict[str, Any]) -> None:
    """Refuse a config.json of another type of model, or with another value where one is required."""
    if content.get("model_type") != model_type:
        raise InputError(f"model_type is {content.get('model_type')!r}; supported is {model_type!r}")
    for field, supported in required.items():
        if content.get(field, supported) != supported:
            raise InputError(f"{field} is {content[field]!r}; supported is {supported!r}")


def read_tensors(directory: Path, is_unused: Callable[[str], bool]) -> dict[str, Tensor]:
    """Read all tensors of model.safetensors, or of the shards that its index names, as fp32. Tensors for which
    is_unused(name) is true may be of any type."""
    index = directory / INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        files = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    else:
        files = [WEIGHTS]
    there = {file.name for file in directory.iterdir() if file.is_file()}
    tensors = {}
    for name in files:
        path = directory / Path(name).name  # a shard lies in the directory, whatever the index says
        if path.name not in there:
            pickled = "pytorch_model.bin" in there
            hint = "pytorch_model.bin is a pickle, which is never read; save as safetensors"
            raise InputError(f"{path}: is missing; {hint if pickled else 'download it again'}")
        try:
            with safe_open(path, "pt") as file:
                read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # the library and PyTorch raise many kinds
            raise InputError(f"{path}: is damaged ({error}); download it again") from None
        for name, tensor in read.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.float()
                if not tensors[name].isfinite().all():
                    raise InputError(f"{path}: {name} contains NaN or infinity; take other weights")
            elif not is_unused(name):
                raise InputError(f"{path}: {name} is {tensor.dtype}, not a floating-point type; download it again")
    return tensors


def fuse(tensors: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return tensors under our names, those that make a fused one stacked; what is missing is left out."""
    for theirs in names.values():  # those that make a fused one are alike
        shapes = {tuple(tensors[name].shape) for name in theirs if name in tensors}
        if len(shapes) > 1:
            raise InputError(f"weights of different shapes, {summarize(sorted(map(str, shapes)))}: {summarize(theirs)}")
    return {
        ours: torch.cat([tensors[name] for name in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
        for ours, theirs in names.items()
        if all(name in tensors for name in theirs)
    }


def split(weights: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return our weights under Hugging Face's names, fused ones split."""
    tensors = {}
    for ours, theirs in names.items():
        for name, part in zip(theirs, weights[ours].cpu().chunk(len(theirs)), strict=True):
            tensors[name] = part.clone()
    return tensors


class SkipInit(TorchFunctionMode):
    """Inside this context initial weights are not drawn, as those of a file replace them. To draw weights
    without storage PyTorch would import its compiler, which takes as long as importing PyTorch itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def build(make: Callable[[], nn.Module], weights: dict[str, Tensor], names: Iterable[str]) -> nn.Module:
    """Make a model and give it these weights, once all of `names` are there and have the model's shapes."""
    if missing := [f"{name} is missing" for name in names if name not in weights]:
        raise InputError(f"the weights do not fit config.json: {summarize(missing)}")
    with torch.device("meta"), SkipInit():  # shapes alone: nothing is allocated before they are known to fit
        model = make()
    wrong = [
        f"{name} is {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in model.state_dict().items()
        if weights[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(f"the weights do not fit config.json: {summarize(wrong)}")
    model.load_state_dict(weights, assign=True)
    return model


def write_directory(
    directory: Path,
    contents: dict[str, dict],
    tensors: dict[str, Tensor],
    save_tokenizer: Callable[[Path], Any],
    stale: Iterable[str],
) -> None:
    """Write a model directory.

    contents: the JSON files, config.json among them; save_tokenizer writes its files into a folder; stale: files
    of other models that are removed unless they are written. Every file is written beside its place first, then
    all are moved in. config.json, without which there is no model, is removed first and moved in last: a kill in
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
        for name in ("config.json", *({INDEX, *stale} - written)):
            (directory / name).unlink(missing_ok=True)
        for name in (*(written - {"config.json"}), "config.json"):
            os.replace(folder / name, directory / name)


def summarize(items: list[str]) -> str:
    """Return the first few of a list as text, and how many more there are."""
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
