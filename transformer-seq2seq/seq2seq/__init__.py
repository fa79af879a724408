"""Everything else of the encoder-decoder: read transformer.py, decoding.py and train.py first.

    from seq2seq import Translator
    Translator.load("samples/model")("AI improves healthcare")

In the order in which data passes through them:

    config.py              the settings of training and of generation, and their flags
    pairs.py               files of pairs: columns, the stream of pairs, and those held out
    tokenizer.py           words or subwords, and the special tokens
    dataset.py             pairs as token ids, in batches: prepare_data
    loss.py                label-smoothed cross-entropy that never holds all logits
    muon.py                the optimizers
    metrics.py             exact match, BLEU and chrF, a baseline, and the report at the end of a training run
    marian.py              the model directory: load and save
    marian_tokenizer.py    the SentencePiece models of directories that others have published
    generation.py          many prompts: checked, encoded, and decoded in batches side by side
    engines.py             what decodes: PyTorch or CTranslate2
    translator.py          Translator: the same from text to text, for scripts and for Python
    explorer/              the page that visualize_attention.py --html writes
    relative_attention.py  attention that ablations.py can put in place of the paper's
    contestants_*.py       what benchmark.py compares: in training, in generation
    common/                what the other experiment needs as well, and has too; common/__init__.py has a map
"""

from .common.errors import InputError
from .translator import Translator

__all__ = ["InputError", "Translator"]
