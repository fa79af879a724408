"""Fill the [MASK]s of sentences, or score sentences, with a model directory:

    from mlm import MaskFiller

    filler = MaskFiller.load("results/model")
    filler("Transformers use [MASK] attention")  # [[{"token": "self", "probability": 0.999}, ...]]
    filler.score("Paris is the capital of France")["pseudo_perplexity"]

fill_mask.py gives it a stream of sentences, of any length, and prints its answers.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from encoder import MaskedLanguageModel

from . import bert
from .common.command_line import int_in, pick_device
from .common.errors import InputError, naming
from .common.standard_input import always, batched
from .common.token_text import continues_word, show_token
from .common.unknown_words import collect_unknown, find_unknown, remember
from .filling import fill, known_surprisals, score
from .tokenizer import MASK, SPECIAL_TOKENS, UNK, SpecialIds

TOP_K, TOP_K_RANGE = 5, int_in(1)
FILL_CHUNK, SCORE_CHUNK = 512, 64  # sentences that are read, and answered, at a time

Check = Callable[[str, list[int]], None]  # refuses a text with these ids, or does nothing


@dataclass(frozen=True)
class Sentence:
    """A sentence, and where it comes from, such as "sentence 2" or "standard input, line 7"."""

    text: str
    place: str


class MaskFiller:
    """A trained encoder with its tokenizer."""

    def __init__(self, model: MaskedLanguageModel, tokenizer: Tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.device = model.head.decoder.weight.device
        self.special = SpecialIds.of(tokenizer)

    @classmethod
    def load(cls, directory: Path | str, device: str = "auto") -> "MaskFiller":
        """Load a model directory, one of train_mlm.py or any BERT's. device: as the scripts' --device."""
        return cls(*bert.load(Path(directory), pick_device(device)))

    def __call__(self, sentences: str | Iterable[str], top_k: int = TOP_K) -> list:
        """Fill a sentence, or each of several.

        Return of one sentence a list with an entry for each [MASK], each a list of the top_k likeliest tokens,
        {"token": str, "probability": float}; of several sentences a list of that.
        """
        found = [result["masks"] for result in self.fill_each(numbered(sentences), top_k)]
        return found[0] if isinstance(sentences, str) else found

    def score(self, sentences: str | Iterable[str]) -> dict | list[dict]:
        """Score a sentence, or each of several. Return of one sentence a dict as score_each yields it; of several
        sentences a list of that."""
        found = list(self.score_each(numbered(sentences)))
        return found[0] if isinstance(sentences, str) else found

    def fill_each(
        self, sentences: Iterable[Sentence], top_k: int = TOP_K, has_next: Callable[[], bool] = always
    ) -> Iterator[dict]:
        """Fill a stream of sentences of any length. If has_next() says that the next one has to be waited for, those
        before it are answered first.

        Yield for each {"input": the sentence, "filled": the sentence with the likeliest token at every [MASK],
        "masks": what __call__ returns}. If a sentence is refused, those before it are answered first.
        """
        if not TOP_K_RANGE.contains(top_k):
            raise InputError(f"top_k {TOP_K_RANGE}, not {top_k!r}", "top_k")
        for texts, found in self.read(sentences, self.check_masks, FILL_CHUNK, has_next):
            found = fill([one.ids for one in found], self.model, self.tokenizer, top_k, self.device)
            for text, masks in zip(texts, found, strict=True):
                filled = self.insert(text, [best[0][0] for best in masks])
                yield {"input": text, "filled": filled, "masks": [self.show(best) for best in masks]}

    def show(self, candidates: list[tuple[int, float]]) -> list[dict]:
        """Return tokens and their probabilities for a person to read."""
        return [{"token": show_token(self.tokenizer, token), "probability": p} for token, p in candidates]

    def insert(self, text: str, tokens: list[int]) -> str:
        """Return a text with a token in place of every [MASK]; one that continues a word loses the space before it."""
        first, *pieces = text.split(MASK)
        for token, piece in zip(tokens, pieces, strict=True):
            if continues_word(self.tokenizer, token):
                first = first.rstrip()
            first += show_token(self.tokenizer, token).removeprefix("##") + piece
        return first

    def score_each(self, sentences: Iterable[Sentence], has_next: Callable[[], bool] = always) -> Iterator[dict]:
        """Score a stream of sentences of any length, by the probability of each known token given the others; later
        pieces of its own word are hidden too (filling.score). One that is too long for the model is cut. has_next: as
        for fill_each.

            pseudo-perplexity = exp(-1/n sum_t log p(token_t | the tokens not hidden))      (Salazar et al. 2020)

        Yield for each {"input": the sentence, "pseudo_perplexity": float, or None if the model knows none of its words,
        "tokens": [{"token": str, "surprisal": -log p in nats, or None if it is unknown}, ...]}. If a sentence is
        refused, those before it are answered first.
        """
        for texts, found in self.read(sentences, self.check_unmasked, SCORE_CHUNK, has_next):
            for text, tokens in zip(texts, score(found, self.model, self.tokenizer, self.device), strict=True):
                surprisals = known_surprisals(tokens)
                perplexity = pseudo_perplexity(sum(surprisals) / len(surprisals)) if surprisals else None
                yield {"input": text, "pseudo_perplexity": perplexity, "tokens": tokens}

    def read(
        self, sentences: Iterable[Sentence], check: Check, size: int, has_next: Callable[[], bool]
    ) -> Iterator[tuple[tuple[str, ...], tuple[Encoding, ...]]]:
        """Yield the texts and the encodings of at most `size` sentences at a time. One warning, at the end, names the
        words that the model does not know."""
        with collect_unknown(UNK) as unknown:
            encoded = ((sentence.text, self.encode(sentence, unknown, check)) for sentence in sentences)
            for chunk in batched(encoded, size, has_next):
                yield tuple(zip(*chunk, strict=True))

    def encode(self, sentence: Sentence, unknown: dict[str, None], check: Check | None = None) -> Encoding:
        """Return the encoding of a sentence, and add the words that the model does not know to unknown. check: refuses
        a sentence; None refuses one that is too long for the model."""
        with naming(sentence.place):
            try:
                sentence.text.encode()
            except UnicodeEncodeError:  # this is how Python represents bytes of the command line that are not UTF-8
                raise InputError("the sentence is not UTF-8 text; write it in UTF-8") from None
            encoding, special = self.tokenizer.encode(sentence.text), self.special
            if typed := [token for token in SPECIAL_TOKENS if token != MASK and token in sentence.text]:
                raise InputError(f"has {typed[0]}, which is a token of the model's own; leave it out")
            if set(encoding.ids) <= {special.cls, special.sep, special.pad}:
                raise InputError("the sentence is empty; give one with words")
            (check or self.check_length)(sentence.text, encoding.ids)
        if special.unk in encoding.ids:
            remember(find_unknown(sentence.text, encoding.ids, encoding.offsets, special.unk).values(), unknown)
        return encoding

    def check_length(self, _: str, ids: list[int]) -> None:
        """Refuse a sentence that is too long for the model."""
        limit = self.model.config.max_length
        if len(ids) > limit:
            raise InputError(f"the sentence has {len(ids)} tokens, the model takes {limit}; shorten it")

    def check_masks(self, text: str, ids: list[int]) -> None:
        """Refuse a sentence that cannot be filled."""
        self.check_length(text, ids)
        seen = ids.count(self.special.mask)
        if not seen:
            shown = text if len(text) < 80 else f"{text[:79]}…"
            raise InputError(f"no {MASK} in {shown!r}; write {MASK} for the word to fill in, or score it", "score")
        if seen != text.count(MASK):
            raise InputError(f"has {text.count(MASK)} {MASK}, but the tokenizer sees {seen}; put spaces around them")

    def check_unmasked(self, _: str, ids: list[int]) -> None:
        """Refuse a sentence with a mask."""
        if self.special.mask in ids:
            raise InputError(f"contains {MASK}, which is not a word to score; fill it instead")

    def knows(self, sentence: Sentence) -> bool:
        """Return True if the model knows a word of a sentence; refuse one that cannot be scored for another reason."""
        return not set(self.encode(sentence, {}, self.check_unmasked).ids) <= set(self.special.all)


def pseudo_perplexity(surprisal: float) -> float:
    """Turn a mean surprisal in nats into pseudo-perplexity; beyond 700 nats it would be no finite number."""
    return math.exp(min(700.0, surprisal))


def numbered(sentences: str | Iterable[str]) -> Iterator[Sentence]:
    """Yield a sentence, or each of several, with its number."""
    for i, text in enumerate([sentences] if isinstance(sentences, str) else sentences, start=1):
        yield Sentence(text, f"sentence {i}")
