"""Everything else of the encoder: read encoder.py, masking.py and train_mlm.py first.

    from mlm import MaskFiller
    MaskFiller.load("results/model")("Transformers use [MASK] attention")

In the order in which data passes through them:

    config.py              the settings of a training run, and their flags
    text.py                text files: the stream of sentences, and those held out
    tokenizer.py           words or subwords, and the special tokens
    dataset.py             sentences as token ids, in batches: prepare_data
    cloze.py               sentences with a key word to hide: what a model, and a baseline, fill in
    report.py              the figures and the table at the end of a training run
    bert.py                the model directory: load and save
    bert_tokenizer.py      vocab.txt, the tokenizer of older BERTs
    filling.py             predict hidden tokens; fill the masks of sentences, or score sentences
    filler.py              MaskFiller: the same from text, for scripts and for Python
    minimal_pairs.py       pairs of a good and a bad sentence: which does a model prefer?
    explorer/              the page that visualize_attention.py --html writes
    relative_attention.py  attention that ablations.py can put in place of BERT's
    contestants_*.py       what benchmark.py compares: in training, in filling masks
    common/                what the other experiment needs as well, and has too; common/__init__.py has a map
"""

from .common.errors import InputError
from .filler import MaskFiller

__all__ = ["InputError", "MaskFiller"]
