"""The pictures: learning curves and attention maps, written to files. Colours are told apart by colour-blind
readers too; "cividis" is even in lightness."""

import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # pictures become files; nothing is shown on a screen
import torch
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from .errors import InputError, warn
from .files import atomic_write

plt.rcParams["text.parse_math"] = False  # a "$" in a text is a "$"

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOUR_MAP = "cividis"
FONT = "DejaVu Sans"  # comes with matplotlib
MAX_MAPS = 48  # a side
MAX_INCHES, LABEL = 40, 0.1  # of a picture; of a label of 6 points
MAX_LABEL, MAX_TITLE = 30, 70  # characters


def save_figure(figure: Figure, path: Path, dpi: int = 150, **options) -> None:
    """Write a figure, whole or not at all, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        figure.savefig(part, dpi=dpi, **options)
    plt.close(figure)


def shorten(text: str, size: int = MAX_LABEL) -> str:
    """Cut a text to `size` characters, the last one an ellipsis."""
    return text if len(text) <= size else f"{text[: size - 1]}…"


def draw_curve(curve: list[dict], scored: str, path: Path) -> None:
    """Draw the losses of a run's evaluations over its steps. scored names the tokens that count."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    steps = [record["step"] for record in curve]
    marker = "." if len(steps) < 10 else None  # a single point makes no line
    for key, label, colour, style in (
        ("train_loss", "training text", COLOURS[0], "-"),
        ("held_out_loss", "held-out text", COLOURS[1], "--"),
    ):
        axes.plot(steps, [record[key] for record in curve], style, color=colour, marker=marker, label=label)
    axes.set(xlabel="step", ylabel=f"loss (nats per {scored} token)", title="Learning curve", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


def entropy(weights: Tensor) -> Tensor:
    """Measure how widely attention is spread, in bits: weights (..., T, S) -> (...).

        mean over the T rows of -sum_s w_s log2 w_s

    It is 0 if each word attends to one word alone, log2 S if it attends to all alike.
    """
    return -(weights * weights.clamp(min=1e-30).log2()).sum(dim=-1).mean(dim=-1)


def with_means(weights: Tensor) -> Tensor:
    """Append the means: weights (L, H, T, S) -> (L + 1, H + 1, T, S), the mean of all heads behind the last
    head, the mean of all layers behind the last layer."""
    weights = torch.cat([weights, weights.mean(dim=1, keepdim=True)], dim=1)
    return torch.cat([weights, weights.mean(dim=0, keepdim=True)], dim=0)


def check_map(n_layers: int, n_heads: int, layer: int | None, head: int | None) -> None:
    """Refuse a layer or a head that the model does not have; they count from 1."""
    for name, number, there in (("layer", layer, n_layers), ("head", head, n_heads)):
        if number is not None and number > there:
            raise InputError(f"{name} {number}: the model has {there}; give a number from 1 to {there}", name)


def select_map(weights: Tensor, layer: int | None, head: int | None) -> tuple[Tensor, str]:
    """Return one map (T, S) of weights (L, H, T, S), and its name. layer and head count from 1; None is the
    mean over all of them."""
    chosen = with_means(weights)[(layer or 0) - 1, (head or 0) - 1]  # the means stand last
    which_layer = "mean of all layers" if layer is None else f"layer {layer}"
    which_head = "mean of all heads" if head is None else f"head {head}"
    return chosen, f"{which_layer}, {which_head}"


def check_room(n_layers: int, n_heads: int) -> None:
    """Refuse more maps than a picture has room for."""
    if max(n_layers, n_heads) > MAX_MAPS:
        raise InputError(
            f"the model has {n_layers} layers with {n_heads} heads, and a picture has room for {MAX_MAPS} on a "
            "side; make the page to explore them in",
            "html",
        )


def draw_map(weights: Tensor, rows: list[str], columns: list[str], attending: str, title: str, path: Path) -> None:
    """Draw one attention map (T, S): a row for every word that attends, a column for every word attended to.

    What may not be attended to is NaN and left white. attending: the label of the rows.
    """
    highest = float(weights.nan_to_num().max())
    size = max(4.8, min(41.2, 3 + 0.42 * len(columns))), max(3.6, min(MAX_INCHES, 1.8 + 0.38 * len(rows)))
    points = min(10, 60 * MAX_INCHES / max(weights.shape))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(weights.numpy(), cmap=COLOUR_MAP, vmin=0, vmax=highest)
    tilted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), map(shorten, columns), fontsize=points, **tilted)
    axes.set_yticks(range(len(rows)), map(shorten, rows), fontsize=points)
    axes.set(xlabel="attended to", ylabel=attending)
    axes.set_title(title, fontsize=10)
    if max(weights.shape) <= 16:
        for row, column in (~weights.isnan()).nonzero().tolist():
            weight = float(weights[row, column])
            shade = "black" if weight > 0.5 * highest else "white"
            axes.text(column, row, f"{weight:.2f}", color=shade, ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="attention weight (each row adds up to 1)", shrink=0.85)
    save_figure(figure, path, bbox_inches="tight")


def draw_heads(weights: Tensor, rows: list[str], columns: list[str], attending: str, title: str, path: Path) -> bool:
    """Draw every head's map, weights (L, H, T, S), a row of maps for each layer, on one scale from 0 to 1.

    Return True if it is crowded: there was no room to name every word, and some are passed over."""
    n_layers, n_heads = weights.shape[:2]
    needed = LABEL * max(len(rows), len(columns))
    side = max(1.5, min(2.6, 0.24 * len(columns)), min(needed, MAX_INCHES / max(n_layers, n_heads)))
    step = math.ceil(needed / side)
    figure, grid = plt.subplots(
        n_layers,
        n_heads,
        figsize=(1.6 + side * n_heads, 1.2 + (side + 0.35) * n_layers),
        layout="constrained",
        squeeze=False,
    )
    for axes, head_weights, spread, (layer, head) in zip(
        grid.flat,
        weights.flatten(0, 1),
        entropy(weights).flatten().tolist(),
        torch.cartesian_prod(torch.arange(n_layers), torch.arange(n_heads)).tolist(),
        strict=True,
    ):
        image = axes.imshow(head_weights.numpy(), cmap=COLOUR_MAP, vmin=0, vmax=1)
        axes.set_title(f"layer {layer + 1}, head {head + 1}\n{spread:.2f} bits", fontsize=8)
        axes.set(xticks=[], yticks=[])
    for axes in grid[-1]:
        axes.set_xticks(range(0, len(columns), step), map(shorten, columns[::step]), rotation=90, fontsize=6)
    for axes in grid[:, 0]:
        axes.set_yticks(range(0, len(rows), step), map(shorten, rows[::step]), fontsize=6)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("attended to", fontsize=9)
    figure.supylabel(attending, fontsize=9)
    figure.colorbar(image, ax=grid, label="attention weight", shrink=0.8)
    save_figure(figure, path, bbox_inches="tight")
    return step > 1


def letters(font: font_manager.FontEntry) -> set[str]:
    """Return the characters that an installed font has."""
    with suppress(OSError, RuntimeError):  # a file that is gone or damaged has none
        path = font_manager.FontPath(font.fname, font.index)
        return set(map(chr, font_manager.get_font(path).get_charmap()))
    return set()


def find_fonts(text: str) -> list[str]:
    """Return matplotlib's font and, if it lacks characters of the text, the first installed fonts that have them."""
    regular = {
        font.name: font
        for font in font_manager.fontManager.ttflist
        if (font.style, font.weight) == ("normal", 400) and not re.search("Last ?Resort", font.name)  # it draws boxes
    }
    fonts, missing = [FONT], set(text) - letters(regular[FONT])
    for name in sorted(regular):
        if missing and missing & (there := letters(regular[name])):
            fonts.append(name)
            missing -= there
    return fonts


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Draw with fonts that have the texts' characters. Replace matplotlib's warnings, one for each character that no
    installed font has, by one that counts them."""
    text = "".join(filter(str.isprintable, "".join(texts)))
    with (
        warnings.catch_warnings(record=True) as caught,
        plt.rc_context({"font.family": find_fonts(text)}),
    ):
        warnings.simplefilter("always")
        yield
    messages = {str(warning.message) for warning in caught}
    missing = {message.split(" (")[0] for message in messages if "missing from" in message}
    if missing:
        warn(
            f"no font has {len(missing)} of the characters, which are drawn as boxes; install one that does, such as "
            "Noto Sans CJK for Chinese and Japanese"
        )
