"""Scripts run as a user runs them: mostly within this process, through their `main`, which saves the seconds that
importing PyTorch takes; as a process of their own if that is the point. The same file lies in both folders."""

import importlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # more do not help models this small
PATIENCE = 300  # seconds that a process may take


class PipeInput(io.BytesIO):
    """A standard input that can be read only once, as a pipe."""

    def seekable(self) -> bool:
        return False

    def tell(self, *_):
        raise io.UnsupportedOperation("a pipe has no position")

    seek = tell

    def peek(self, size: int) -> bytes:
        return bytes(self.getbuffer()[super().tell() :][:size])


class Terminal(io.TextIOWrapper):
    """A standard input at which a person sits."""

    def isatty(self) -> bool:
        return True


@cache
def load_script(path: Path) -> ModuleType:
    """Import a script, under a name of its own if both folders have one of this name."""
    if path.stem not in ("ablations", "benchmark", "visualize_attention"):
        return importlib.import_module(path.stem)
    name = f"{path.parent.name.replace('-', '_')}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_within(
    run_script: Callable, main: Callable, argv: list[str], cwd: Path | None, stdin: bytes, terminal: bool = False
) -> subprocess.CompletedProcess:
    """Call run_script(main) with these arguments, folder and standard input -> exit status, stdout and stderr."""
    before = sys.argv, sys.stdin, sys.stdout, sys.stderr, Path.cwd()
    kinds = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = [(kind, signal.getsignal(kind)) for kind in kinds]
    source = (Terminal if terminal else io.TextIOWrapper)(PipeInput(stdin), encoding="utf-8")
    written = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    status = 0
    try:
        sys.argv, sys.stdin, (sys.stdout, sys.stderr) = argv, source, written
        if cwd:
            os.chdir(cwd)
        run_script(main)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:  # a user would see a traceback
        traceback.print_exc()
        status = 1
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = before[:4]
        os.chdir(before[4])
        for kind, handler in handlers:
            signal.signal(kind, handler)
    texts = []
    for stream in written:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="surrogateescape"))
    return subprocess.CompletedProcess(argv, status, *texts)


def run_process(
    line: list[str], cwd: Path | None, stdin: bytes, to: Path | None, limits
) -> subprocess.CompletedProcess:
    """Run a script in an interpreter of its own. to: the path of what standard output goes to; limits: names of
    resource limits, such as RLIMIT_FSIZE, and their values."""

    def limit() -> None:
        import resource  # Windows has none

        for name, most in dict(limits).items():
            resource.setrlimit(getattr(resource, name), (most, most))

    with Path(to).open("wb") if to else tempfile.TemporaryFile() as stdout:
        done = subprocess.run(
            [sys.executable, *line],
            cwd=cwd,
            env=ONE_THREAD,
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            preexec_fn=limit if limits else None,
        )
        if not to:
            stdout.seek(0)
        written = b"" if to else stdout.read()
    texts = [text.decode(errors="surrogateescape") for text in (written, done.stderr)]
    return subprocess.CompletedProcess(line, done.returncode, *texts)
