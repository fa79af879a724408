"""visualize_attention.py: the maps that it draws are the model's, and it draws them of any sentence. The page that it
writes with --html is tested in test_mlm_explorer.py, how maps are drawn in common/ is the same in both experiments."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib.image import imread

from mlm import MaskFiller
from mlm.common import plots
from mlm.tokenizer import MASK


@pytest.fixture
def draw(script, trained, tmp_path):
    """draw(*flags) draws with the trained model -> the heights and widths of the two pictures, in dots."""

    def run(*flags):
        output = tmp_path / "pictures"
        status, out, stderr = script("visualize_attention", "--model", trained / "model", "--output", output, *flags)
        assert status == 0, stderr
        files = [output / "attention_heatmap.png", output / "attention_heads.png"]
        assert out.split() == list(map(str, files)) and set(output.iterdir()) == set(files)
        return [imread(file).shape[:2] for file in files]

    return run


@pytest.mark.parametrize(
    "flags",
    [
        ["the cat [MASK] the small mouse"],
        ["cat"],
        ["--layer", 2, "--head", 1, "our [MASK] drives a [MASK] car"],
        ["costs $5, $\\x$ and $_^{a}"],
        ["the cat " * 11],
    ],
)
def test_two_pictures_of_sensible_size(draw, flags):
    """Whatever is in the sentence, up to the longest that the model takes."""
    for height, width in draw(*flags):
        assert 300 < width < 4000 and 300 < height < 4000


def test_a_long_sentence_has_a_picture_that_fits_into_memory(tmp_path, monkeypatch):
    """512 words, the longest sentence of most models, make a picture of at most 10,000 dots a side."""
    drawn = []

    def measure(self, path, dpi, **_):
        drawn.append(self.get_size_inches() * dpi)
        path.touch()

    monkeypatch.setattr(plots.Figure, "savefig", measure)
    plots.draw_map(torch.eye(512), ["word"] * 512, ["word"] * 512, "attending", "title", tmp_path / "map.png")
    assert len(drawn) == 1 and drawn[0].max() <= 10_000


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn and not written."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_, **__: figures.append(figure))
    yield figures
    for figure in figures:
        plots.plt.close(figure)


def test_every_map_has_its_own_weights_and_the_words_on_their_sides(drawn, tmp_path):
    """A row for each word that attends, a column for each that is attended to."""
    weights = torch.rand(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    words = ["the", "cat"], ["a", "dog", "reads", "it"]
    plots.draw_map(weights[1, 2], *words, "attending", "title", tmp_path / "map.png")
    plots.draw_heads(weights, *words, "attending", "title", tmp_path / "heads.png")
    one, *maps = drawn[0].axes[0], *drawn[1].axes[:-1]  # the last one is the colour bar
    for axes in one, maps[3]:
        labels = axes.get_yticklabels(), axes.get_xticklabels()
        assert tuple([label.get_text() for label in side] for side in labels) == words
    assert np.array_equal(one.images[0].get_array(), weights[1, 2])
    for axes, (layer, head) in zip(maps, product(range(2), range(3)), strict=True):
        assert axes.get_title().startswith(f"layer {layer + 1}, head {head + 1}\n")
        assert np.array_equal(axes.images[0].get_array(), weights[layer, head])


def test_the_curve_has_each_loss_under_its_name(drawn, tmp_path):
    curve = [{"step": step, "train_loss": 1 / step, "held_out_loss": 2 / step} for step in (50, 90)]
    plots.draw_curve(curve, "hidden", tmp_path / "curve.png")
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    assert lines == {"training text": [[50, 1 / 50], [90, 1 / 90]], "held-out text": [[50, 2 / 50], [90, 2 / 90]]}


def test_every_word_beside_the_heads_can_be_read(drawn, tmp_path):
    """The maps grow with the words; where a picture would get too large, some words are passed over, and it says so."""
    for n_heads, n_words, crowded in [(4, 8, False), (4, 80, False), (12, 100, True)]:
        words, weights = [f"word {i}" for i in range(n_words)], torch.eye(n_words).expand(2, n_heads, -1, -1)
        assert plots.draw_heads(weights, words, words, "attending", "title", tmp_path / "heads.png") == crowded
        drawn[-1].canvas.draw()
        axes = drawn[-1].axes[0]
        labels = axes.get_yticklabels()
        assert (len(labels) < n_words) == crowded
        points = axes.get_window_extent().height / drawn[-1].dpi * 72 / len(labels)
        assert points > labels[0].get_fontsize()
    assert max(drawn[-1].get_size_inches()) < 45


def test_letters_that_matplotlibs_font_lacks_come_from_an_installed_one(tmp_path, monkeypatch, capsys):
    """The first regular one that has them; a font file that is gone is passed over."""
    path = tmp_path / "test.ttf"
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "day"])
    builder.setupCharacterMap({ord("日"): "day"})
    builder.setupGlyf({".notdef": Glyph(), "day": Glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "day": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Day", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    usual = plots.font_manager.fontManager.ttflist
    monkeypatch.setattr(plots.font_manager.fontManager, "ttflist", usual.copy())
    plots.font_manager.fontManager.addfont(path)
    gone = replace(plots.font_manager.fontManager.ttflist[-1], fname=str(tmp_path / "gone.ttf"), name="Absent")
    plots.font_manager.fontManager.ttflist.append(gone)
    assert plots.find_fonts("the cat") == ["DejaVu Sans"] and plots.find_fonts("the 日") == ["DejaVu Sans", "Day"]
    for text, told in [("日", ""), ("日月", "no font has 1 of the characters")]:
        with plots.fonts_for([text]):
            plots.draw_map(torch.eye(2), ["the", text], ["the", text], "attending", text, tmp_path / "map.png")
        error = capsys.readouterr().err
        assert told in error and (error.count("\n") == 1 if told else not error)


def test_a_map_is_that_of_the_layer_and_head_asked_for(script, load_script, trained, tmp_path, monkeypatch):
    """Without --layer or --head, it is the mean over all of them. The guess for a [MASK] stands beside its row."""
    module, drawn = load_script("visualize_attention"), []
    monkeypatch.setattr(module, "draw_map", lambda *args: drawn.append(args))
    monkeypatch.setattr(module, "draw_heads", lambda *args: drawn.append(args))
    sentence = "the cat [MASK] the small zebra"
    filler = MaskFiller.load(trained / "model", "cpu")
    with torch.no_grad():
        ids = torch.tensor([filler.tokenizer.encode(sentence).ids])
        weights = torch.stack(filler.model.encoder(ids, need_weights=True)[1])[:, 0]
    wanted = {
        (None, None): weights.mean((0, 1)),
        (2, None): weights[1].mean(0),
        (2, 1): weights[1, 0],
        (None, 2): weights[:, 1].mean(0),
    }
    for (layer, head), expected in wanted.items():
        flags = [*(["--layer", layer] if layer else []), *(["--head", head] if head else [])]
        flags += ["--model", trained / "model", "--output", tmp_path]
        assert script("visualize_attention", *flags, sentence)[0] == 0
        chosen, rows, columns, label, title, _ = drawn[-2]
        torch.testing.assert_close(chosen, expected)
        assert rows == ["[CLS]", "the", "cat", f"{MASK} → chases", "the", "small", "[UNK: zebra]", "[SEP]"]
        assert columns == ["[CLS]", "the", "cat", MASK, "the", "small", "[UNK: zebra]", "[SEP]"]
        assert title.startswith(sentence) and ("layer 2" in title) == (layer == 2) and label == "attending"
        torch.testing.assert_close(drawn[-1][0], weights)


def test_entropy_is_in_bits():
    weights = torch.stack([torch.eye(4), torch.full((4, 4), 0.25), torch.tensor([[0.5, 0.5, 0, 0]] * 4)])
    torch.testing.assert_close(plots.entropy(weights), torch.tensor([0.0, 2.0, 1.0]))


def test_help_names_every_flag_and_an_example(script):
    status, out, stderr = script("visualize_attention", "--help")
    assert (status, stderr) == (0, "")
    assert "python3 visualize_attention.py" in out
    flags = "--model", "--output", "--layer", "--head", "--html", "--device"
    assert [flag for flag in flags if flag not in out] == []
