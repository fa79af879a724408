"""The state of a training run, written so that a crash at any moment leaves a whole file."""

import os
import re
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from .command_line import explain
from .errors import InputError, warn
from .files import replace
from .progress import Progress

COPYING = 10  # seconds that a copy of a run may take, whose files are then of any order


def is_unfinished(path: Path, made: Path) -> bool:
    """Return True if there is a checkpoint, but what a run makes after it is missing or clearly older: the run was cut
    short."""
    return path.exists() and not (made.exists() and made.stat().st_mtime >= path.stat().st_mtime - COPYING)


def warn_of_overwriting(path: Path, figures: Path) -> bool:
    """Warn that a new run overwrites an earlier one's checkpoint, if there is one, and return True then. figures: what
    a run writes at its very end."""
    if not path.exists():
        return False
    if is_unfinished(path, figures):
        warn(f"{path}: overwriting the checkpoint of an unfinished run (use --resume to continue it)")
    else:
        warn(f"{path.parent}: replacing the run that ended there (--resume continues it, another --output keeps it)")
    return True


def previous(path: Path) -> Path:
    """Return the path of the checkpoint before the last one."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state made of tensors, numbers, strings, lists and dicts, and only then move it to its place; the
    checkpoint that was there is kept as the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # raised while cleaning up after an error of the disk
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            replace(path, previous(path))
        replace(part, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read the last checkpoint, or, with a warning, the previous one if the last is damaged."""
    candidates = [candidate for candidate in (path, previous(path)) if candidate.is_file()]
    if not candidates:
        raise InputError(f"{path}: no checkpoint here to resume from; run without --resume first")
    damage = []
    for candidate in candidates:
        try:
            with ZipFile(candidate) as file:
                if damaged := file.testzip():  # its checksum is wrong, which PyTorch does not check
                    raise ValueError(damaged)
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(candidate, map_location="cpu", weights_only=True)
            expected = {"run_config": dict, "model": dict, "optimizers": list}
            if not all(isinstance(state[name], kind) for name, kind in expected.items()):
                raise TypeError
            Progress(**state["progress"]).parts[-1]["epochs"]  # a limit, which a resumed run keeps
        except PermissionError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file, and says much about them
            if isinstance(error, (MemoryError, RuntimeError)) and explain(error):
                raise InputError(
                    f"{candidate}: there is too little memory to read it; free some, and resume again"
                ) from None
            damage.append(f"{candidate}: is damaged or from another version ({type(error).__name__})")
            continue
        if damage:
            warn(f"{damage[0]}; resuming from the previous one")
        return state
    raise InputError(f"{damage[0]}; run without --resume")


OTHERS = {  # settings of a run that stand for something that the user gave
    "files": "other training text",
    "held_out": "other held-out text, or another way to hold some out",
    "vocabulary": "another tokenizer or vocabulary size, or another model to start from",
}


def abbreviate_hashes(value: Any) -> str:
    """Return a value as text for a message, each SHA-256 cut to its first digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", str(value))


def check_run(path: Path, state: dict[str, Any], run_config: dict[str, Any]) -> None:
    """Refuse a state loaded from path whose "run_config", which may not change within a run, differs from
    this one; name the first difference."""
    for name, value in run_config.items():
        if (saved := state["run_config"].get(name)) != value:
            difference = f"{name} {abbreviate_hashes(saved)}, not {abbreviate_hashes(value)}"
            if name in OTHERS:
                difference = f"{OTHERS[name]} ({difference})"
            raise InputError(
                f"{path}: belongs to a run with {difference}; give the same, or start a new run in another folder",
                "output",
            )
