"""mlm.text"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from .common.errors import InputError
from .common.files import fingerprint
from .common.lines import check, draw_held_out, lines_of, plain

CHUNK, CHARACTERS = 1000, 1_000_000  # that are tokenized at a time


SPLITTING = 2  # goes up when another version holds out, or leaves out of training, other sentences


SAMPLE = 30_000_000  # bytes of text from which a vocabulary is learnt; of more text, an evenly spread part


def chunks(sentences: Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most CHUNK sentences, each ending where CHARACTERS are reached."""
    chunk, room = [], CHARACTERS
    for sentence in sentences:
        chunk.append(sentence)
        room -= len(sentence)
        if len(chunk) == CHUNK or room <= 0:
            yield chunk
            chunk, room = [], CHARACTERS
    if chunk:
        yield chunk


class Text:
    """The training sentences of some files, read anew whenever they are iterated over, so that they are never
    all in memory, and those held out, which are left out of them."""

    def __init__(self, files: list[Path], held_out_file: Path | None, seed: int):
        """What is held out is what the held-out file has; without one, hold_out() draws it."""
        self.files, self.held_out_file, self.seed = files, held_out_file, seed
        prints = [fingerprint(check(path)) for path in files]
        self.bytes, self.lines = (sum(one[size] for one in prints) for size in ("bytes", "lines"))
        self.recipe = {
            "files": [one["sha256"] for one in prints],
            "held_out": fingerprint(check(held_out_file))["sha256"] if held_out_file else f"seed {seed}",
            "splitting": SPLITTING,
        }
        self.held_out = list(lines_of(held_out_file)) if held_out_file else []
        self.sentences, self.left_out = 0, 0  # how many the last pass met, and how many it left out

    def hold_out(self) -> None:
        """Draw what is held out, unless a file says it."""
        if not self.held_out_file:
            self.held_out = draw_held_out(self.read("holding out"), self.seed)

    def recall(self, notes: dict) -> None:
        """Take what is held out, and how many sentences are, from what tokenize noted down."""
        self.sentences, self.left_out = notes["sentences"], notes["left_out"]
        self.held_out = notes["held_out"] or self.held_out

    def read(self, task: str) -> Iterator[str]:
        """The training sentences, in order and with their repetitions; a bar shows how far the task has come.

        Raises InputError where none is left.
        """
        aside, self.sentences, self.left_out = set(map(plain, self.held_out)), 0, 0
        with tqdm(desc=task, total=self.lines, unit=" lines", unit_scale=True, leave=False, delay=1) as bar:
            for path in self.files:
                for sentence in lines_of(path):
                    bar.update()
                    if plain(sentence) in aside:
                        self.left_out += 1
                    else:
                        self.sentences += 1
                        yield sentence
        if not self.sentences:
            raise InputError(f"{self.held_out_file}: holds all training sentences; nothing is left to train on")

    def __iter__(self) -> Iterator[str]:
        return self.read("reading")

    def sample(self, task: str) -> Iterator[str]:
        """All sentences, or of more than SAMPLE bytes every second, third ..., so that no more remain."""
        return islice(self.read(task), 0, None, max(1, -(-self.bytes // SAMPLE)))
