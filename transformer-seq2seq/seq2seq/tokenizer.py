"""The tokenizers: learn one from a text, load it, and turn its token ids back into text."""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordLevelTrainer

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"  # MarianMT's names; the first two ids and the last one
SPACE = "▁"  # stands for the space before a word, so that joining tokens gives back the text
SPACES, MARK = r"\s+", rf"[^\w{SPACE}'’-]"
PATTERNS = {SPACES, MARK}  # all regular expressions in these tokenizers
LONG_WORD = re.compile(r"\S{1000}")  # the time to learn subwords from one word grows with its square


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most vocab_size entries: </s> and <unk> first, <pad> last.

    kind "word": words and punctuation marks are tokens, rare ones are <unk>.
    kind "bpe": byte pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), never <unk>.
    Decoding gives back the text except for repeated spaces.
    """
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
        marks = pre_tokenizers.Split(Regex(MARK), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, marks])
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
        trainer = WordLevelTrainer(vocab_size=vocab_size - 1, special_tokens=[EOS, UNK], show_progress=False)
    else:
        texts = (LONG_WORD.sub(r"\g<0> ", text) for text in texts)
        tokenizer = Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=vocab_size - 1,
            special_tokens=[EOS, UNK],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(SPACES), " "), normalizers.Strip()]
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([PAD])
    tokenizer.encode_special_tokens = True  # "</s>" in a text is text
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer that train_tokenizer made and its method save wrote."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # the file does not say so
    return tokenizer


def to_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Turn token ids, without start and </s>, into one line of text. A token outside the vocabulary becomes <unk>,
    and control characters, which a terminal would obey, are replaced."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    text = re.sub(r"\s+", " ", re.sub(rf"(?<=[\w>]){UNK}", f" {UNK}", text)).strip()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text)
