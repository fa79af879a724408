"""How one token of a vocabulary is shown to a person."""

import re

from tokenizers import Tokenizer

from .unknown_words import find_unknown

# The vocabulary of byte pair encoding has a character for each byte (GPT-2): a visible one for itself, the others from
# 256 on.
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(byte): byte for byte in VISIBLE}
BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*VISIBLE}))}
SPACE = "Ġ"  # the space's character


def has_byte_tokens(tokenizer: Tokenizer) -> bool:
    """Return True if the tokens of a vocabulary are bytes, each written as one character."""
    return tokenizer.token_to_id(SPACE) is not None


def continues_word(tokenizer: Tokenizer, token_id: int) -> bool:
    """Return True if no space stands between this token and the one before it."""
    token = tokenizer.id_to_token(token_id) or ""
    return not token.startswith(SPACE) if has_byte_tokens(tokenizer) else token.startswith("##")


def show_token(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as it reads in a text. A byte that is no whole character, or a control character, which a
    terminal would obey, is written like <0xE6>, and a space that is a token of its own as ␣."""
    token = tokenizer.id_to_token(token_id)
    if token is None:
        return "?"
    if has_byte_tokens(tokenizer) and BYTE_OF.keys() >= set(token):
        text = bytes(BYTE_OF[character] for character in token).decode(errors="surrogateescape")
    else:
        text = tokenizer.decode([token_id], skip_special_tokens=False) or token
    return escape(text.strip(" ") or "␣" * len(text))


def show_tokens(tokenizer: Tokenizer, ids: list[int], text: str, unk_id: int | None) -> list[str]:
    """Return the tokens of a text, whose ids these are, as they read in it; a word that the vocabulary does not have
    stands in the name of the unknown token: [UNK: word]."""
    shown = [show_token(tokenizer, token) for token in ids]
    encoding = tokenizer.encode(text) if unk_id in ids and isinstance(tokenizer, Tokenizer) else None
    if encoding and encoding.ids == ids:
        for i, word in find_unknown(text, ids, encoding.offsets, unk_id).items():
            name = shown[i].rstrip("]>")
            shown[i] = f"{name}: {escape(word)}{shown[i][len(name) :]}"
    return shown


def escape(text: str) -> str:
    """Write control characters, and bytes that are no whole character, like <0xE6>."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\udc80-\udcff]", lambda byte: f"<0x{ord(byte[0]) & 0xFF:02X}>", text)
