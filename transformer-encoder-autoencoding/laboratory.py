"""Many runs, compared: done side by side, each in a process of its own, then put into a table and into small
pictures beside the default's.

A result is a dict: the run's `name` and `seed`, a number for every measure, `stopped` (the step at which the
loss was no longer finite, else None), and `curve`, a list of points {"epoch": ..., measure: ...}.
"""

import json
import multiprocessing
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import compress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from cli import InputError, Interrupt, replacing, write_text

Work = Callable[[Any, Callable[[], None]], dict]  # (job, what to call after each of its parts) -> its result


@cache
def scratch() -> tempfile.TemporaryDirectory:
    """Where all runs of this process find the text's token ids; it goes when the process ends."""
    return tempfile.TemporaryDirectory()


def serve(work: Work, parent: Connection) -> None:
    """The life of a process: do the jobs that the parent sends; end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent decides
    try:
        while True:
            parent.send(work(parent.recv(), lambda: parent.send(None)))
    except (EOFError, ConnectionError):  # the parent is gone
        return


def side_by_side(work: Work, jobs: list, processes: int, part_done: Callable[[], Any]) -> Iterator[dict]:
    """The results of all jobs, as they come; only of those that are finished, if an interrupt asks to stop.

    Raises InputError where a process ends of itself. No process outlives the last result.
    """
    context = multiprocessing.get_context("spawn")
    waiting, team = list(reversed(jobs)), {}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the processes inherit
    try:
        for _ in range(min(processes, len(jobs))):
            ours, theirs = context.Pipe()
            team[ours] = context.Process(target=serve, args=(work, theirs), daemon=True)
            team[ours].start()
            theirs.close()
            ours.send(waiting.pop())
        signal.signal(signal.SIGINT, before)
        interrupt, missing = Interrupt(), len(jobs)
        while missing and not interrupt.asked:
            for connection in wait(list(team), timeout=0.2):
                try:
                    result = connection.recv()
                except (EOFError, ConnectionError):
                    raise InputError("a process ended before its run did; its message stands above") from None
                if result is None:
                    part_done()
                    continue
                missing -= 1
                if waiting:
                    connection.send(waiting.pop())
                yield result
    finally:
        for connection in team:
            connection.close()  # a process ends when it next has something to say
        for process in team.values():
            process.join()


def write_results(results: list[dict], path: Path) -> None:
    """A line of JSON for each, written whole or not at all."""
    write_text(path, "".join(json.dumps(result) + "\n" for result in results))


def read_results(path: Path, jobs: list, measures: Iterable[str]) -> tuple[list[dict], list[dict]]:
    """Of the results in the file, which begin with the fields of their job and have these measures, those of
    these jobs, and the others.

    Raises InputError where there is no such file, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"{path}: no finished runs here to go on from; run without --resume first")
    try:
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        wanted, needed = [vars(job) for job in jobs], {"stopped", "curve", *measures}
        if any(needed - result.keys() for result in results):
            raise KeyError
        asked = [{name: result[name] for name in wanted[0]} in wanted for result in results]
        return list(compress(results, asked)), [r for r, mine in zip(results, asked, strict=True) if not mine]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: is damaged; run without --resume") from None


def table(results: list[dict], measures: dict[str, tuple[str, str]]) -> str:
    """A Markdown table, a row for each name: the mean of every measure over the seeds and, in brackets, its
    range. measures: key of a result -> head of its column, format of its numbers."""
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


def draw(
    results: list[dict], default: str, above: tuple[str, str], below: tuple[str, str], path: Path
) -> None:
    """For every name two small panels, one above the other: the mean and the range over the seeds of a
    measure along the epochs, beside the default's. above, below: (key in the curves' points, label); what
    is below is a share."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    curves: dict[str, list] = {}
    for result in results:
        curves.setdefault(result["name"], []).append(result["curve"])
    names = [name for name in curves if name != default]
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
            for name, color, line in ((default, "#767676", "--"), (names[place], "#0072B2", "-")):
                length = min(map(len, curves[name]))
                values = np.array([[point[measure] for point in curve[:length]] for curve in curves[name]])
                epochs = [point["epoch"] for point in curves[name][0][:length]]
                axes.plot(epochs, values.mean(axis=0), line, color=color)
                lowest_and_highest = values.min(axis=0), values.max(axis=0)
                axes.fill_between(epochs, *lowest_and_highest, color=color, alpha=0.2, lw=0)
            axes.grid(alpha=0.3)
            axes.set_ylabel("" if column else label)
            if measure == above[0]:
                axes.set_title(names[place], fontweight="bold")
                axes.set(ylim=(0, 1.05 * highest), xticklabels=[])
            else:
                axes.set(ylim=(0, 1.05), xlabel="epoch")
                axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    handles = reversed(grid[0, 0].lines)
    labels = ["ablated: mean and range of the seeds", default]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
    plt.close(figure)
