"""Draw what the words of a sentence attend to.

    python3 visualize_attention.py
    python3 visualize_attention.py --layer 2 --head 1 "The capital of [MASK] is Paris"
    python3 visualize_attention.py --html "The capital of [MASK] is Paris"

Writes to --output (default: results/ beside this file): attention_heatmap.png, one map, of the layer and
head asked for or of the mean of all; attention_heads.png, every head of every layer with its entropy.
With --html, instead of the two: attention.html, a page to explore every head in, which needs a browser and
nothing else.
"""

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from mlm import bert as pretrained
from mlm.common.command_line import Parser, pick_device, run, whole
from mlm.common.errors import InputError, warn
from mlm.common.files import output_folder, replacing, write_text
from mlm.explorer import page as explorer
from mlm.filling import Sentence, encode, to_word
from mlm.tokenizer import MASK, SpecialIds

plt.switch_backend("Agg")  # pictures become files; no screen is needed
plt.rcParams["text.parse_math"] = False  # a "$" in a sentence is a "$"

HERE = Path(__file__).parent
COLOURS = "cividis"  # even in lightness, and the same to a colour-blind reader
MOST_MAPS = 48  # a side


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("sentence", nargs="?", default=f"Transformers use {MASK} attention", metavar="SENTENCE")
    add("--model", type=Path, default=HERE / "results" / "model", metavar="DIR", help="default: results/model")
    add(
        "--output",
        type=Path,
        default=HERE / "results",
        metavar="DIR",
        help="where to write (default: results/)",
    )
    add("--layer", type=whole(1), help="the layer shown, from 1 (default: the mean of all)")
    add("--head", type=whole(1), help="the head shown, from 1 (default: the mean of all)")
    add("--html", action="store_true", help="instead of the pictures one page to explore, attention.html")
    return parser.parse_args()


def entropy(weights: Tensor) -> Tensor:
    """How widely attention is spread, in bits: weights (..., T, S) -> (...), the mean over the T rows of
    -sum_s w_s log2 w_s; 0 where each word attends to one alone, log2 S where it attends to all alike."""
    return -(weights * weights.clamp(min=1e-30).log2()).sum(dim=-1).mean(dim=-1)


def choose(weights: Tensor, layer: int | None, head: int | None) -> tuple[Tensor, str]:
    """weights (L, H, T, S) -> the map (T, S) of a layer and head, both from 1, and its name; where one is
    None the mean is taken over it. Raises InputError where the model has no such layer or head."""
    for flag, number, there in (("--layer", layer, weights.size(0)), ("--head", head, weights.size(1))):
        if number is not None and number > there:
            raise InputError(f"{flag} {number}: the model has {there}; give a number from 1 to {there}")
    chosen = explorer.with_means(weights)[(layer or 0) - 1, (head or 0) - 1]  # the means stand last
    which_layer = "mean of all layers" if layer is None else f"layer {layer}"
    which_head = "mean of all heads" if head is None else f"head {head}"
    return chosen, f"{which_layer}, {which_head}"


def check_room(n_layers: int, n_heads: int) -> None:
    """Raises InputError where a picture has no room for so many maps."""
    if max(n_layers, n_heads) > MOST_MAPS:
        raise InputError(
            f"the model has {n_layers} layers with {n_heads} heads, and a picture has room for {MOST_MAPS} a "
            "side; give --html"
        )


def draw_map(weights: Tensor, rows: list[str], columns: list[str], title: str, path: Path) -> None:
    """One attention map (S, S): a row for every word that attends, a column for every word attended to."""
    highest = float(weights.max())
    side = max(3.6, min(40, 1.8 + 0.42 * len(columns)))  # inches; at 150 dots each
    figure, axes = plt.subplots(figsize=(side + 1.2, side), layout="constrained")
    image = axes.imshow(weights.numpy(), cmap=COLOURS, vmin=0, vmax=highest)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="attended to", ylabel="attending")
    axes.set_title(title, fontsize=10)
    if len(columns) <= 16:
        for row, column in torch.ones_like(weights).nonzero().tolist():
            weight = float(weights[row, column])
            shade = "black" if weight > 0.5 * highest else "white"
            axes.text(column, row, f"{weight:.2f}", color=shade, ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="attention weight (each row adds up to 1)", shrink=0.85)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_heads(weights: Tensor, rows: list[str], columns: list[str], title: str, path: Path) -> None:
    """Every head's map, weights (L, H, S, S), a row of maps for each layer, on one scale from 0 to 1."""
    n_layers, n_heads = weights.shape[:2]
    side = max(1.5, min(2.6, 0.24 * len(columns)))
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
        image = axes.imshow(head_weights.numpy(), cmap=COLOURS, vmin=0, vmax=1)
        axes.set_title(f"layer {layer + 1}, head {head + 1}\n{spread:.2f} bits", fontsize=8)
        axes.set(xticks=[], yticks=[])
    for axes in grid[-1]:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(rows)), rows, fontsize=6)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("attended to", fontsize=9)
    figure.supylabel("attending", fontsize=9)
    figure.colorbar(image, ax=grid, label="attention weight", shrink=0.8)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight")
    plt.close(figure)


@contextmanager
def boxes_counted() -> Iterator[None]:
    """Within it, one warning counts the characters that the font lacks, instead of a warning for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = {str(warning.message) for warning in caught}
    missing = {message.split(" (")[0] for message in messages if "missing from" in message}
    if missing:
        warn(f"the font lacks {len(missing)} of the characters; they are drawn as boxes")


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    device = pick_device(args.device)
    model, tokenizer = pretrained.load(args.model, device)
    (encoding,) = encode([Sentence(args.sentence, "SENTENCE")], model, tokenizer)
    if args.html:
        explorer.check_size(model.config.n_layers, model.config.n_heads, len(encoding))
    else:
        check_room(model.config.n_layers, model.config.n_heads)
    ids = torch.tensor([encoding.ids], device=device)
    states, weights = model.encoder(ids, need_weights=True)
    weights = torch.stack(weights)[:, 0].cpu()  # (L, H, S, S)
    if not weights.isfinite().all():
        raise InputError("the model's attention is no number, so its weights are damaged; get it anew")
    words = [explorer.label(tokenizer, token) for token in encoding.ids]
    chosen, name = choose(weights, args.layer, args.head)
    output_folder(args.output)

    if args.html:
        guesses = explorer.guesses(encoding.ids, model, tokenizer, device)
        maps = explorer.with_means(weights)
        page = explorer.page(args.sentence, words, maps, entropy(maps), guesses, args.layer, args.head)
        write_text(args.output / "attention.html", page)
        print(args.output / "attention.html")
        return

    attending = list(words)  # what a mask is taken for comes out of its row; what is looked at is the mask
    for position in (ids[0] == SpecialIds.of(tokenizer).mask).nonzero().flatten().tolist():
        guess = to_word(tokenizer, int(model.head(states[0, position]).argmax()))
        attending[position] = f"{MASK} → {guess}"
    rows, columns = ([w if len(w) <= 30 else f"{w[:29]}…" for w in part] for part in (attending, words))
    title = args.sentence if len(args.sentence) <= 70 else args.sentence[:69] + "…"

    with boxes_counted():
        draw_map(chosen, rows, columns, f"{title}\n{name}", args.output / "attention_heatmap.png")
        draw_heads(
            weights,
            rows,
            columns,
            f"{title}\nentropy of each head, mean over the words",
            args.output / "attention_heads.png",
        )
    for file in ("attention_heatmap.png", "attention_heads.png"):
        print(args.output / file)


if __name__ == "__main__":
    run(main)
