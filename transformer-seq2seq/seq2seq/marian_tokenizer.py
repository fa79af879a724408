"""seq2seq.marian_tokenizer"""

import json
from dataclasses import dataclass
from pathlib import Path

from .common.errors import InputError
from .tokenizer import EOS, PAD, UNK

FILES = "source.spm", "target.spm", "vocab.json"


@dataclass(frozen=True)
class Encoding:
    """The ids of a text, </s> at their end, and where in the text each begins and ends, in characters."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


class MarianTokenizer:
    """Has those methods of tokenizers.Tokenizer that the commands of this folder use, and one for targets."""

    def __init__(self, directory: Path):
        """Raises InputError where a file is missing or damaged, or the package sentencepiece is."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise InputError(f"{directory}: has SentencePiece models; run pip install sentencepiece") from None
        for name in FILES:
            if not (directory / name).is_file():
                raise InputError(f"{directory / name}: is missing; get it anew")
        try:
            self.models = [SentencePieceProcessor(model_file=str(directory / name)) for name in FILES[:2]]
            for model in self.models:
                model.id_to_piece(list(range(model.get_piece_size())))  # whether all of them are UTF-8
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{directory}: source.spm or target.spm is damaged ({error}); get it anew") from None
        try:
            self.ids = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            self.ids = None
        if not isinstance(self.ids, dict) or not all(type(i) is int and i >= 0 for i in self.ids.values()):
            raise InputError(f"{directory / 'vocab.json'}: is not an object of tokens and their ids; get it anew")
        if missing := {EOS, UNK, PAD} - self.ids.keys():
            raise InputError(f"{directory / 'vocab.json'}: has no {' and no '.join(sorted(missing))}")
        self.tokens = {i: token for token, i in self.ids.items()}

    def _encode(self, text: str, model) -> Encoding:
        """A language code in front, as in `>>deu<< Hello`, is a token of its own."""
        ids, offsets, start = [], [], 0
        if text.startswith(">>") and "<<" in text:
            start = text.index("<<") + 2
            ids.append(self.ids.get(text[:start], self.ids[UNK]))
            offsets.append((0, start))
        try:
            pieces = model.encode(text[start:], out_type=str)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"a SentencePiece model is damaged ({error}); get it anew") from None
        for piece in pieces:
            ids.append(self.ids.get(piece, self.ids[UNK]))
            letters = piece.replace("▁", "")
            start = max(start, text.find(letters, start))  # where it is not found, the model has normalised it
            offsets.append((start, start + len(letters)))
        return Encoding([*ids, self.ids[EOS]], [*offsets, (len(text), len(text))])

    def encode(self, text: str) -> Encoding:
        """The pieces of a source text."""
        return self._encode(text, self.models[0])

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        """The pieces of source texts."""
        return [self._encode(text, self.models[0]) for text in texts]

    def encode_targets(self, texts: list[str]) -> list[Encoding]:
        """The pieces of target texts."""
        return [self._encode(text, self.models[1]) for text in texts]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of pieces; special tokens are left out, or stand as they are."""
        text, pieces = "", []
        for token in [self.tokens.get(i, UNK) for i in ids]:
            if token not in (EOS, UNK, PAD):
                pieces.append(token)
            elif not skip_special_tokens:
                text += self.models[1].decode_pieces(pieces) + token + " "
                pieces = []
        return (text + self.models[1].decode_pieces(pieces)).replace("▁", " ").strip()

    def token_to_id(self, token: str) -> int | None:
        """None where the vocabulary has no such token."""
        return self.ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """None where the vocabulary has no such id."""
        return self.tokens.get(token_id)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """The id of every token; all of them are in vocab.json."""
        return self.ids

    def get_vocab_size(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    def save(self, folder: Path) -> None:
        """Write the three files."""
        for name, model in zip(FILES, self.models, strict=False):
            (folder / name).write_bytes(model.serialized_model_proto())
        (folder / "vocab.json").write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
