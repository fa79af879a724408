"""The tokenizer of MarianMT models as Helsinki-NLP publishes them: two SentencePiece models (Kudo and Richardson
2018), source.spm and target.spm, whose pieces have their ids in vocab.json.

It needs the package sentencepiece, which nothing else here does.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from .common.errors import InputError, naming
from .common.files import refuse_lfs_pointer
from .tokenizer import EOS, PAD, UNK

FILES = "source.spm", "target.spm", "vocab.json"
LANGUAGE = re.compile(r">>[^\s<>]+<<")  # Hugging Face takes text between the marks for a code as well, and loses it


@dataclass(frozen=True)
class Encoding:
    """The ids of a text, </s> at their end, and where in the text each begins and ends, in characters."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


def read_ids(path: Path) -> dict[str, int]:
    """Read the id of every token."""
    with naming(path):
        if not path.is_file():
            raise InputError("is missing; download it again")
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            ids = None
        if not isinstance(ids, dict) or not all(type(i) is int and i >= 0 for i in ids.values()):
            refuse_lfs_pointer(path)
            raise InputError("is not an object of tokens and their ids; download it again")
        if missing := {EOS, UNK, PAD} - ids.keys():
            raise InputError(f"has no {' and no '.join(sorted(missing))}; use another model")
    return ids


class MarianTokenizer:
    """Has those methods of tokenizers.Tokenizer that this project uses, and one for targets."""

    def __init__(self, directory: Path):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise InputError(f"{directory}: has SentencePiece models; run pip install sentencepiece") from None
        self.models = []
        for name in FILES[:2]:
            with naming(directory / name):
                if not (directory / name).is_file():
                    raise InputError("is missing; download it again")
                try:
                    model = SentencePieceProcessor(model_file=str(directory / name))
                    model.id_to_piece(list(range(model.get_piece_size())))  # raises if any is not UTF-8
                except (OSError, RuntimeError, ValueError) as error:
                    refuse_lfs_pointer(directory / name)
                    raise InputError(f"is damaged ({error}); download it again") from None
            self.models.append(model)
        self.ids = read_ids(directory / "vocab.json")
        self.tokens = {i: token for token, i in self.ids.items()}

    def _encode(self, text: str, model) -> Encoding:
        """Split a text into pieces. A language code in front, as in `>>deu<< Hello`, is a token of its own."""
        ids, offsets, start = [], [], 0
        if code := LANGUAGE.match(text):
            start = code.end()
            ids.append(self.ids.get(text[:start], self.ids[UNK]))
            offsets.append((0, start))
        try:
            pieces = model.encode(text[start:], out_type=str)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"a SentencePiece model is damaged ({error}); download it again") from None
        for piece in pieces:
            ids.append(self.ids.get(piece, self.ids[UNK]))
            letters = piece.replace("▁", "")
            found = text.find(letters, start)  # -1 if the model has normalized it
            begin = max(start, found)
            offsets.append((begin, begin + len(letters)))
            start = begin if found < 0 else begin + len(letters)
        return Encoding([*ids, self.ids[EOS]], [*offsets, (len(text), len(text))])

    def encode(self, text: str) -> Encoding:
        """Split a source text into pieces."""
        return self._encode(text, self.models[0])

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        """Split source texts into pieces."""
        return [self._encode(text, self.models[0]) for text in texts]

    def encode_targets(self, texts: list[str]) -> list[Encoding]:
        """Split target texts into pieces."""
        return [self._encode(text, self.models[1]) for text in texts]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Join pieces; special tokens are left out, or stand as they are."""
        text, pieces = "", []
        for token in [self.tokens.get(i, UNK) for i in ids]:
            if token not in (EOS, UNK, PAD):
                pieces.append(token)
            elif not skip_special_tokens:
                text += self.models[1].decode_pieces(pieces) + token + " "
                pieces = []
        return (text + self.models[1].decode_pieces(pieces)).replace("▁", " ").strip()

    def token_to_id(self, token: str) -> int | None:
        """Return a token's id; None if the vocabulary has no such token."""
        return self.ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id; None if the vocabulary has no such id."""
        return self.tokens.get(token_id)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Return the id of every token; all of them are in vocab.json."""
        return self.ids

    def get_vocab_size(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    def save(self, folder: Path) -> None:
        """Write the three files."""
        for name, model in zip(FILES, self.models, strict=False):
            (folder / name).write_bytes(model.serialized_model_proto())
        (folder / "vocab.json").write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
