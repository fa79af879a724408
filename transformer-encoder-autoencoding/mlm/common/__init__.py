"""Code that both experiments need, byte for byte the same in the two folders. It imports neither's model nor tokenizer.

What is where:

    command_line, errors, standard_input     flags, messages, the prompt on a terminal
    lines, files, token_store, batching      text, safe writing, token ids on disk, batches
    subwords, tokenizer_json                 tokenizers: learn, check
    token_text, unknown_words                tokens, and words without one, as a person reads them
    coverage, tfidf                          what a vocabulary covers; the baseline's search
    budget, progress, checkpoint             how long a run is, how far it has come, how it goes on
    distributed, fast_cpu                    several processes; faster functions on a CPU
    model_directory                          a model's files, as Hugging Face has them
    experiments, benchmarking                ablations, timing
    plots, recording                         pictures, a moving one too
    web_page, page_data, explorer/           the page
"""

import signal
import sys
from contextlib import suppress
from pathlib import Path

# Importing PyTorch takes seconds. Ctrl-C ends a script meanwhile, without a traceback, until run_script takes over.
with suppress(OSError):
    is_script = b"run_script(main)" in Path(sys.argv[0]).read_bytes()
    if is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
