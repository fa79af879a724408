"""The state of a training run, written so that a crash at any moment leaves a whole file."""

import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from cli import InputError, warn


@dataclass
class Progress:
    """How far a run has come. With the seed, epoch and position decide every later batch, and the step
    decides the dropout: nothing else has to be remembered for an exact continuation."""

    epoch: int = 0  # full passes made
    position: int = 0  # batches taken of the pass after them
    step: int = 0  # updates made
    tokens: int = 0  # target tokens seen, padding not counted
    seconds: float = 0.0
    nll: float = 0.0  # -log p of the target tokens since the last evaluation (nats), and their number
    nll_tokens: int = 0
    parts: list[dict] = field(default_factory=list)  # from which step on which budget, device and precision
    curve: list[dict] = field(default_factory=list)  # a record for every evaluation
    kept: int = 0  # which of them the kept weights belong to
    best_accuracy: float = 0.0


def newer(path: Path, model: Path) -> bool:
    """Whether there is a checkpoint, and no model that was made of it: the run was cut short."""
    return path.exists() and not (model.exists() and model.stat().st_mtime_ns >= path.stat().st_mtime_ns)


def before(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write state, made of tensors, numbers, strings, lists and dicts, and only then move it to its place;
    the one that was there is kept as the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # of its own clean-up, after the disk's
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, before(path))
        os.replace(part, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read what save wrote last, or, with a warning, the one before where that is damaged.

    Raises InputError where there is no checkpoint, or none that can be read.
    """
    candidates = [candidate for candidate in (path, before(path)) if candidate.is_file()]
    if not candidates:
        raise InputError(f"{path}: no checkpoint here to resume from; run without --resume first")
    damage = []
    for candidate in candidates:
        try:
            with ZipFile(candidate) as file:
                if damaged := file.testzip():  # whose checksum is wrong: PyTorch does not look at it
                    raise ValueError(damaged)
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(candidate, map_location="cpu", weights_only=True)
            sound = {"identity": dict, "model": dict, "optimizers": list}
            if not all(isinstance(state[name], kind) for name, kind in sound.items()):
                raise TypeError
            Progress(**state["progress"])
        except PermissionError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file, and says much about them
            damage.append(f"{candidate}: is damaged or another version's ({type(error).__name__})")
            continue
        if damage:
            warn(f"{damage[0]}; going on from the one before it")
        return state
    raise InputError(f"{damage[0]}; run without --resume")


def shown(value: Any) -> str:
    """A value of an identity in a message: of a file's SHA-256 the first digits are enough."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", str(value))


def check(path: Path, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises InputError, naming the first difference, where the "identity" of a state that was loaded from
    path, which is what must not change within a run, is another than this."""
    for name, value in identity.items():
        if (saved := state["identity"].get(name)) != value:
            raise InputError(
                f"{path}: belongs to a run with {name} {shown(saved)}, not {shown(value)}; give the same, or "
                "begin another run with another --output"
            )
