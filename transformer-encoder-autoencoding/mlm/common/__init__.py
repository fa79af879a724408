"""Code that both experiments need: byte for byte the same in the two folders, and free of models and tokenizers."""

import signal
import sys
from contextlib import suppress
from pathlib import Path

# Importing PyTorch takes seconds. Ctrl-C ends a script meanwhile, without a traceback, until run_script takes over.
with suppress(OSError):
    is_script = b"run_script(main)" in Path(sys.argv[0]).read_bytes()
    if is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
