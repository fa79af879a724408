"""Ablations: the default model trained again without one mechanism at a time, or with another in its place, each run
in a process of its own, then compared in a table and in small pictures beside the default's.

A result is a dict: the fields of the run's Job, a number for every measure, `stopped` (the step at which the
loss was no longer finite, else None), and `curve`, a list of points {"epoch": ..., measure: ...}.
"""

import argparse
import json
import multiprocessing
import shlex
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import compress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .command_line import Interrupt, Parser, add_flags, explain, flag_name, int_in, pick_device
from .errors import InputError, warn
from .files import fingerprint, output_lock, write_text

DEFAULT = "default"


@dataclass(frozen=True)
class Job:
    """One run: an ablation, by name, a seed, the flags of the training script that name a text and sizes of one's own,
    and the SHA-256 of the files among them, so that a changed text is another job."""

    name: str
    seed: int
    epochs: int
    device: str
    flags: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


Work = Callable[[Job, Callable[[], None]], dict]  # (job, to be called after each of its epochs) -> its result


@dataclass(frozen=True)
class Ablation:
    """What is taken out or, in an exchange, what takes its place; what was predicted before it was tried; and the
    function that does it to a trainer that has not begun."""

    removes: str
    prediction: str
    apply: Callable[[Any], None]
    is_exchange: bool = False

    @property
    def verb(self) -> str:
        """The word between the name and what is removed."""
        return "puts in" if self.is_exchange else "takes out"


@dataclass
class Study:
    """A set of ablations and how they are measured.

    measures: key of a result -> head of its column, format of its numbers. above, below: what the pictures
    show, (key of the curves' points, label); what is below is a share. remark: text to add to an ablation's
    line in the table's notes, from one of its results. own: how runs with a text of one's own are measured; config:
    the training script's settings, of which own_flags can be given; defaults: of those, where they are others here.
    """

    epochs: int
    seeds: int
    measures: dict[str, tuple[str, str]]
    legend: str
    above: tuple[str, str]
    below: tuple[str, str]
    output: Path
    remark: Callable[[dict], str] = lambda result: ""
    ablations: dict[str, Ablation] = field(default_factory=dict)
    own: "Study | None" = None
    config: type | None = None
    own_flags: tuple[str, ...] = ()
    defaults: dict[str, str] = field(default_factory=dict)

    def exchange(self, prediction: str) -> Callable:
        """Make an exchange of the function below, which runs only if it is named: its docstring is what it puts in."""
        return self.ablation(prediction, is_exchange=True)

    def ablation(self, prediction: str, is_exchange: bool = False) -> Callable:
        """Make an ablation of the function below: its name is the ablation's, its docstring what it removes."""

        def add(apply: Callable[[Any], None]) -> Callable[[Any], None]:
            removes = " ".join(apply.__doc__.split())
            self.ablations[apply.__name__.replace("_", "-")] = Ablation(removes, prediction, apply, is_exchange)
            return apply

        return add

    def parse_args(self, description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
        """Parse the flags of ablations.py."""
        parser = Parser(description)
        add = parser.add_argument
        add("names", nargs="*", metavar="NAME", help="which to run (default: all that take something out)")
        add("--list", action="store_true", help="print what each takes out or puts in, and was predicted to do")
        add("--seeds", type=int_in(1, 1000), default=self.seeds, help="runs of each, with the seeds 0, 1, ...")
        add("--epochs", type=int_in(1, 100_000), default=self.epochs, help="passes over the training text")
        add("--resume", action="store_true", help="keep the finished runs in --output, and do the others")
        add(
            "--output",
            type=Path,
            default=self.output,
            metavar="DIR",
            help=f"the folder to write to (default: {self.output.name}/)",
        )
        if self.config:
            others = {one.name for one in fields(self.config)} - {*self.own_flags}
            add_flags(parser, self.config, others, self.defaults)
        parser.add_device(default="cpu")  # a process for each thread would crowd a GPU
        args = parser.parse_args(argv)
        args.flags, args.files = [], []
        for one in fields(self.config) if self.config else ():
            if one.name in self.own_flags and (value := getattr(args, one.name)) != one.default:
                values = value if isinstance(value, list) else [value]
                args.flags += map(str, [flag_name(one.name), *values])
                args.files += [path for path in values if isinstance(path, Path)]
        for path in args.files:
            if path.name in self.ablations and not path.exists():
                parser.error(f"{path}: no such file; names of ablations stand before the flags")
        args.files = [path for path in args.files if path.is_file()]  # where others fail, a run says why
        for name in args.names:
            if name not in self.ablations:
                parser.error(f"no ablation is called {name!r}; there are {', '.join(self.ablations)}")
        return args

    def main(self, description: str | None, work: Work, argv: list[str] | None = None) -> None:
        """Do the runs that the command line asks for; write each result as it comes, then table and picture."""
        args = self.parse_args(description, argv)
        if args.list:
            for name, entry in self.ablations.items():
                print(f"{name}\n    {entry.verb}: {entry.removes}\n    predicted: {entry.prediction}")
            return
        (self.own if args.files else self).run(args, work)

    def run(self, args: argparse.Namespace, work: Work) -> None:
        """Do the runs that the flags ask for. With --resume, the table and the picture also show the finished runs of
        other ablations."""
        device = pick_device(args.device).type
        text = args.flags, [fingerprint(path)["sha256"] for path in args.files]
        order = list(dict.fromkeys([DEFAULT, *self.ablations]))
        jobs = [Job(name, seed, args.epochs, device, *text) for seed in range(args.seeds) for name in order]
        asked = {DEFAULT, *(args.names or self.usual)}
        path = args.output / "ablations.jsonl"
        with output_lock(args.output):
            results, others = read_results(path, jobs, self.measures) if args.resume else ([], [])
            path.touch()  # a file that cannot be written is found now, not after the first run
            if path.stat().st_size and not args.resume:
                warn(f"{path}: the first run that ends replaces what is there (--resume keeps it)")
            finished = {(result["name"], result["seed"]) for result in results}
            missing = [job for job in jobs if job.name in asked and (job.name, job.seed) not in finished]
            left = len(missing)
            with tqdm(total=args.epochs * left, unit="epoch", dynamic_ncols=True, disable=None) as bar:
                for result in run_in_processes(work, missing, torch.get_num_threads(), bar.update):
                    results = sorted([*results, result], key=lambda r: (order.index(r["name"]), r["seed"]))
                    write_results([*others, *results], path)
                    shown = ", ".join(f"{head} {result[key]:{form}}" for key, (head, form) in self.measures.items())
                    tqdm.write(f"{result['name']}, seed {result['seed']}: {shown}")
                    left -= 1
            if results:
                self.write(results, args)
                print(f"\n{table(results, self.measures)}")
        if left:
            total = args.seeds * len(asked)
            raise KeyboardInterrupt(f"interrupted; {total - left} of {total} runs are finished; resume with --resume")

    @property
    def usual(self) -> list[str]:
        """The names of the ablations that run beside the default if none is named."""
        return [name for name, entry in self.ablations.items() if not entry.is_exchange and name != DEFAULT]

    def write(self, results: list[dict], args: argparse.Namespace) -> None:
        """Write the table, and the picture if the default is there to compare with."""
        names = [name for name in dict.fromkeys(result["name"] for result in results) if name != DEFAULT]
        command = " ".join([f"python3 {Path(sys.argv[0]).name}", *([] if names == self.usual else names or [DEFAULT])])
        for name, value, usual in (("seeds", args.seeds, self.seeds), ("epochs", args.epochs, self.epochs)):
            command += f" --{name} {value}" if value != usual else ""
        command = f"{command} {shlex.join(results[0].get('flags', []))}".rstrip()  # older rows have none
        text = f"`{command}`\n\n{table(results, self.measures)}\n\n{self.legend}\n\n"
        firsts: dict[str, dict] = {}
        for result in results:
            firsts.setdefault(result["name"], result)
        for result in firsts.values():
            entry = self.ablations[result["name"]]
            text += f"- **{result['name']}** {entry.verb}: {entry.removes} Predicted: {entry.prediction}"
            text += f"{self.remark(result)}\n"
        write_text(args.output / "ablations.md", text)
        if {DEFAULT} < {result["name"] for result in results}:
            draw_results(results, self.above, self.below, args.output / "ablations.png")


def serve(work: Work, parent: Connection) -> None:
    """Do the jobs that the parent process sends, until it ends; what a user did wrong is the parent's to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent decides
    try:
        while True:
            job = parent.recv()
            try:
                parent.send(work(job, lambda: parent.send(None)))
            except Exception as error:
                if not (reason := explain(error)):
                    raise
                parent.send(InputError(reason))
    except (EOFError, ConnectionError):  # the parent is gone
        return


def run_in_processes(work: Work, jobs: list[Job], n_processes: int, part_done: Callable[[], Any]) -> Iterator[dict]:
    """Yield the results of all jobs as they come; after an interrupt, only of those that are finished.

    No process outlives the last result.
    """
    context = multiprocessing.get_context("spawn")
    waiting, processes = list(reversed(jobs)), {}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the processes inherit
    interrupt = None
    try:
        for _ in range(min(n_processes, len(jobs))):
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=serve, args=(work, theirs), daemon=True)
            processes[ours].start()
            theirs.close()
            ours.send(waiting.pop())
        signal.signal(signal.SIGINT, before)
        interrupt, missing = Interrupt(), len(jobs)
        while missing and not interrupt.requested:
            for connection in wait(list(processes), timeout=0.2):
                try:
                    result = connection.recv()
                except (EOFError, ConnectionError):
                    raise InputError(
                        "a process ended before its run did; if no message stands above, there was too little memory; "
                        "continue with --resume"
                    ) from None
                if result is None:
                    part_done()
                    continue
                if isinstance(result, InputError):
                    raise result
                missing -= 1
                if waiting:
                    connection.send(waiting.pop())
                yield result
    finally:
        for connection in processes:
            connection.close()  # a process ends when it next has something to send
        for process in processes.values():
            process.join()
        if interrupt:
            interrupt.release()


def write_results(results: list[dict], path: Path) -> None:
    """Write a line of JSON for each result, all or nothing."""
    write_text(path, "".join(json.dumps(result) + "\n" for result in results))


def read_results(path: Path, jobs: list[Job], measures: Iterable[str]) -> tuple[list[dict], list[dict]]:
    """Read finished results, and part those of these jobs from the others."""
    if not path.is_file():
        raise InputError(f"{path}: no finished runs to resume; run without --resume first")
    try:
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        wanted, needed = [vars(job) for job in jobs], {"stopped", "curve", *measures}
        older = {"flags": [], "files": []}  # what rows of the bundled text may lack
        asked = [{name: (older | result)[name] for name in wanted[0]} in wanted for result in results]
        if any(needed - result.keys() for result in compress(results, asked)):
            raise KeyError
        return list(compress(results, asked)), [r for r, mine in zip(results, asked, strict=True) if not mine]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: is damaged; run without --resume") from None


def table(results: list[dict], measures: dict[str, tuple[str, str]]) -> str:
    """Return a Markdown table with a row for each name: the mean of every measure over the seeds and, in
    brackets, its range."""
    rows = [["", *(head for head, _ in measures.values()), "seeds"]]
    for name in dict.fromkeys(result["name"] for result in results):
        of_name = [result for result in results if result["name"] == name]
        cells = [name]
        for measure, (_, form) in measures.items():
            values = [result[measure] for result in of_name]
            low, mean, high = (f"{f(values):{form}}" for f in (min, statistics.fmean, max))
            cells.append(f"{mean} ({low} to {high})" if low != high else mean)
        diverged = sum(result["stopped"] is not None for result in of_name)
        rows.append([*cells, f"{len(of_name)}" + f", {diverged} diverged" * (diverged > 0)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def draw_results(results: list[dict], above: tuple[str, str], below: tuple[str, str], path: Path) -> None:
    """Draw two small panels for every ablation, one above the other: the mean and the range over the seeds of
    a measure along the epochs, beside the default's."""
    from .plots import COLOURS, plt, save_figure  # matplotlib takes a while to import

    curves: dict[str, list] = {}
    for result in results:
        curves.setdefault(result["name"], []).append(result["curve"])
    names = [name for name in curves if name != DEFAULT]
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    size = 2.7 * n_columns + 1.5, 3.4 * n_rows + 0.5
    figure, grid = plt.subplots(2 * n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    highest = max(point[above[0]] for of_name in curves.values() for curve in of_name for point in curve)
    for place in range(n_rows * n_columns):
        row, column = divmod(place, n_columns)
        for (measure, label), axes in zip((above, below), grid[2 * row : 2 * row + 2, column], strict=True):
            if place >= len(names):
                axes.set_axis_off()
                continue
            for name, colour, line in ((DEFAULT, "#767676", "--"), (names[place], COLOURS[0], "-")):
                length = min(map(len, curves[name]))
                values = np.array([[point[measure] for point in curve[:length]] for curve in curves[name]])
                epochs = [point["epoch"] for point in curves[name][0][:length]]
                axes.plot(epochs, values.mean(axis=0), line, color=colour)
                lowest_and_highest = values.min(axis=0), values.max(axis=0)
                axes.fill_between(epochs, *lowest_and_highest, color=colour, alpha=0.2, lw=0)
            axes.grid(alpha=0.3)
            axes.set_ylabel("" if column else label)
            if measure == above[0]:
                axes.set_title(names[place], fontweight="bold")
                axes.set(ylim=(0, 1.05 * highest), xticklabels=[])
            else:
                axes.set(ylim=(0, 1.05), xlabel="epoch")
                axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    handles = reversed(grid[0, 0].lines)
    labels = ["changed: mean and range of the seeds", DEFAULT]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path, dpi=110)
