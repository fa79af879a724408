"""The state of a training run, written so that a crash at any moment leaves a whole file."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from cli import InputError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write state, made of tensors, numbers, strings, lists and dicts, and only then move it to its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".saving-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read what save wrote, provided that its "identity" (what must not change within a run) is this one.

    Raises InputError where there is no checkpoint, it is damaged, or it belongs to another run.
    """
    if not path.is_file():
        raise InputError(f"{path}: no checkpoint here to resume from; run without --resume first")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["identity"]
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is damaged ({reason}); run without --resume") from None
    for name, value in identity.items():
        if saved.get(name) != value:
            raise InputError(
                f"{path}: belongs to a run with {name} {saved.get(name)}, not {value}; "
                "give the same, or run without --resume"
            )
    return state
