"""The page that visualize_attention.py --html writes, in a headless Chromium: what it shows are the model's
figures, it runs without a network and by the keyboard alone, and whatever stands in a sentence stays text."""

import os
import re
import shutil
from contextlib import contextmanager

import pytest
import torch
from playwright.sync_api import sync_playwright

from mlm import MaskFiller
from mlm.explorer import page as explorer
from mlm.tokenizer import MASK

SENTENCE = f"the cat {MASK} the small zebra"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
HOSTILE = [
    "<script>window.hit=1</script>",
    "</script>",
    '<img src=x onerror="window.hit=1">',
    "<!--",
    "&amp;",
    "\"quoted\" 'words'",
    "{{script}}",
    "\\u003c",
    "🦊",
    "שלום",
    "\u202eright to left",
    "a" * 300,
]


@pytest.fixture(scope="module")
def browser():
    """Chromium, started once."""
    names = "chromium", "chromium-browser", "google-chrome"
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = "no Chromium here: install the package chromium, or Google Chrome, to test the page"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def opened(browser):
    """with opened(file, width) as page: the page in a window of that width. At the end it must have asked for
    nothing but its own file, and have reported nothing."""

    @contextmanager
    def at(file, width=1280, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        yield page
        page.close()
        assert (asked, said) == ([file.as_uri()], [])

    return at


@pytest.fixture(scope="module")
def written(trained, command, tmp_path_factory):
    """The page of a sentence with a [MASK] and an unknown word."""
    place = tmp_path_factory.mktemp("page")
    flags = "--html", "--model", trained / "model", "--output", place
    done = command("visualize_attention.py", *flags, SENTENCE, cwd=place)
    assert (done.returncode, done.stdout) == (0, f"{place / 'attention.html'}\n"), done.stderr
    assert [path.name for path in place.iterdir()] == ["attention.html"]
    return place / "attention.html"


@pytest.fixture(scope="module")
def filler(trained):
    return MaskFiller.load(trained / "model", "cpu")


def made(path, words, layers=2, heads=2, sentence=None):
    """A page of random attention between any words."""
    torch.manual_seed(0)
    weights = (3 * torch.randn(layers, heads, len(words), len(words))).softmax(dim=-1)
    guess = {
        "best": [{"token": word, "probability": 0.2, "right": False} for word in words[:5]],
        "itself": 0.1,
    }
    text = explorer.render(sentence or " ".join(words), words, weights, [guess] * len(words), None, None)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The page of 40 words, of a model of 4 layers with 8 heads."""
    words = ["[CLS]", *(f"{'long' * (i % 4)}word{i}" for i in range(40)), "[SEP]"]
    return made(tmp_path_factory.mktemp("long") / "attention.html", words, 4, 8)


@torch.no_grad()
def attention(filler):
    """Return the model's weights (L, H, S, S) for the sentence."""
    ids = torch.tensor([filler.tokenizer.encode(SENTENCE).ids])
    return torch.stack(filler.model.encoder(ids, need_weights=True)[1])[:, 0]


def percent(probability):
    return f"{100 * probability:.1f} %" if probability >= 0.0005 else "< 0.1 %"


def texts(page, selector):
    return page.locator(selector).all_text_contents()


# ---- the figures


def test_every_weight_shown_is_the_models(opened, written, filler):
    weights = attention(filler)
    with opened(written) as page:
        shown = page.evaluate("""() => [...document.querySelectorAll(".head")].map((head) => {
            head.click();
            return [...document.querySelectorAll("#from .word")].map((word) => {
                word.focus();
                return [...document.querySelectorAll("#to .figure")].map((figure) => figure.textContent);
            });
        })""")
        columns = page.evaluate("""() => [...document.querySelectorAll("#to .word")].map((word) => {
            word.focus();
            return [...document.querySelectorAll("#from .figure")].map((figure) => figure.textContent);
        })""")
        words = texts(page, "#from bdi")
    assert words == ["[CLS]", "the", "cat", MASK, "the", "small", "[UNK]", "[SEP]"]
    assert all(re.fullmatch(r"[01]\.\d{3}", figure) for head in shown for row in head for figure in row)
    n_layers, n_heads = weights.shape[:2]
    for i, figures in enumerate(shown):
        layer, head = divmod(i, n_heads + 1)
        layers = weights.mean(0) if layer == n_layers else weights[layer]
        exact = layers.mean(0) if head == n_heads else layers[head]
        off = (torch.tensor([[float(figure) for figure in row] for row in figures]) - exact).abs().max()
        assert off <= 0.0005 + 1e-6
    assert columns == [list(column) for column in zip(*shown[-1], strict=True)]


def test_the_figures_of_a_head_are_its_own(opened, written, filler):
    """Its entropy, and the dots of its picture: the heavier, the darker."""
    weights = attention(filler)
    entropy = -(weights * weights.log2()).sum(-1).mean(-1)
    with opened(written) as page:
        bits = texts(page, ".head span")
        greens = page.evaluate("""() => [...document.querySelectorAll(".head canvas")].map((canvas) => {
            const dots = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return [...dots].filter((_, i) => i % 4 === 1);
        })""")
        page.locator(".head").nth(3).click()
        title = page.locator("#map-title").inner_text(), page.locator("#map-entropy").inner_text()
    assert [bits[i] for i in (0, 1, 3, 4)] == [f"{value:.2f}" for value in entropy.flatten().tolist()]
    assert title == ("Layer 2, head 1", f"entropy {entropy[1, 0]:.2f} bits, of 3.00 at most")
    for i, (layer, head) in {0: (0, 0), 1: (0, 1), 3: (1, 0), 4: (1, 1)}.items():
        order = weights[layer, head].flatten().argsort()
        dots = torch.tensor(greens[i])[order]
        assert bool((dots[1:] <= dots[:-1]).all()) and dots[-1] < dots[0]


# the greens of the big map's third row: where its cells begin (in the table) or where its lines end
DRAWN = """() => {
    const canvas = document.querySelector("#canvas");
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
    copy.drawImage(canvas, 0, 0);
    const dots = copy.getImageData(0, 0, canvas.width, canvas.height).data;
    const green = (x, y) => dots[4 * (Math.floor(y) * canvas.width + Math.floor(x)) + 1];
    const [rows, columns] = ["from", "to"].map((side) => document.querySelectorAll(`#${side} .word`).length);
    const inTable = document.querySelector("#figure").dataset.form === "table";
    return [...Array(columns).keys()].map((column) => inTable
        ? green((column + 0.1) * canvas.width / columns, 2.2 * canvas.height / rows)
        : green(canvas.width - 1, (column + 0.5) * canvas.height / Math.max(rows, columns)));
}"""


def test_what_is_drawn_large_is_what_is_said(opened, written):
    """The heavier a weight, the darker its cell and its line."""
    with opened(written) as page:
        page.locator(".head").nth(4).click()
        page.locator("#from .word").nth(2).focus()
        weights = torch.tensor([float(figure) for figure in texts(page, "#to .figure")])
        for form in ("Lines", "Table"):
            page.get_by_text(form, exact=True).click()
            greens = torch.tensor(page.evaluate(DRAWN))[weights.argsort()]
            # a thin line is partly transparent, and its colour read back with a small error
            assert bool((greens[1:] <= greens[:-1] + 3).all()) and greens[-1] < greens[0] - 50


def test_a_hidden_word_is_guessed_as_fill_mask_guesses_it(opened, written, filler):
    words = SENTENCE.split()
    with opened(written) as page:
        assert page.locator(".chip[aria-pressed=true]").all_inner_texts() == [MASK]
        for i, word in enumerate(words):
            page.locator(".chip").nth(i).click()
            asked = " ".join([*words[:i], MASK, *words[i + 1 :]])
            best = filler(asked)[asked.split()[:i].count(MASK)]
            expected = [f"{one['token']} {percent(one['probability'])}" for one in best]
            lines = [" ".join(line.split("\n")) for line in page.locator("#guesses li").all_inner_texts()]
            assert lines[:5] == expected
            right = page.locator("#guesses li.right bdi").all_inner_texts()
            assert right == ([] if word == MASK else ["[UNK]" if word == "zebra" else word])
        page.locator(".chip").nth(len(words) - 1).click()
        assert page.locator(".chip[aria-pressed=true]").count() == page.locator("#guesses li").count() == 0


def test_pointing_at_a_word_or_a_cell_says_its_figures(opened, written):
    with opened(written) as page:
        page.locator("#from .word").nth(2).hover()
        figures = texts(page, "#to .figure")
        reading = page.locator("#reading").inner_text()
        assert reading.startswith("cat attends to ") and max(figures) in reading
        page.mouse.move(0, 0)
        assert page.locator("#reading").inner_text().startswith(f"{MASK} attends to ")  # the one chosen
        page.get_by_text("Table", exact=True).click()
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 3.5 * box["width"] / 8, box["y"] + 2.5 * box["height"] / 8)
        assert page.locator("#reading").inner_text() == f"cat attends to {MASK} {figures[3]}"
        page.mouse.move(0, 0)
        page.locator("#all").click()
        assert set(texts(page, ".word .figure")) == {""}


def test_the_head_asked_for_is_shown_at_first(opened, script, trained, tmp_path):
    for flags, title in [
        (["--layer", 2], "Layer 2, mean of all heads"),
        (["--head", 1], "Mean of all layers, head 1"),
    ]:
        flags = ["--html", "--model", trained / "model", "--output", tmp_path, *flags, "the cat"]
        assert script("visualize_attention", *flags)[0] == 0
        with opened(tmp_path / "attention.html") as page:
            assert page.locator("#map-title").inner_text() == title
            assert page.locator(".head[aria-selected=true]").count() == 1


# ---- the keyboard, colours and widths


def test_everything_is_reached_by_the_keyboard(opened, written):
    with opened(written) as page:

        def focused():
            return page.evaluate("""() => {
                const { outlineStyle, outlineWidth } = getComputedStyle(
                    document.activeElement.matches("input") ? document.activeElement.nextElementSibling
                                                            : document.activeElement);
                return [document.activeElement.closest("[id]").id, outlineStyle, parseFloat(outlineWidth)];
            }""")

        def press(*keys):
            for key in keys:
                page.keyboard.press(key)

        stops = []
        for _ in range(7):
            press("Tab")
            name, style, width = focused()
            stops.append(name)
            assert style == "solid" and width >= 2
        assert stops == ["theme", "words", "heads", "all", "form", "from", "to"]

        page.locator("#words .chip").first.focus()
        press("ArrowRight", "Enter")
        assert page.locator("#guesses-title").inner_text() == "For cat, hidden, the model guesses"
        page.locator(".head").first.focus()
        titles = []
        for key in ("ArrowRight", "ArrowDown", "ArrowDown", "End", "Home"):
            press(key)
            titles.append(page.locator("#map-title").inner_text())
        assert titles == [
            "Layer 1, head 2",
            "Layer 2, head 2",
            "Mean of all layers, head 2",
            "Mean of all layers, mean of all heads",
            "Layer 1, head 1",
        ]
        page.locator("#from .word").first.focus()
        press("ArrowDown", "ArrowDown")
        assert page.locator("#reading").inner_text().startswith("cat attends to ")
        assert page.locator("#from .word[aria-selected=true] bdi").inner_text() == "cat"
        press("Tab", "End")
        assert page.locator("#reading").inner_text().startswith("[SEP] is attended to by ")
        press("Escape")
        assert page.locator(".word[aria-selected=true]").count() == 0
        page.locator("#form input").first.focus()
        press("ArrowRight")
        assert page.locator("#figure").get_attribute("data-form") == "table"


def test_a_word_left_by_escape_is_chosen_again_by_a_click(opened, written):
    with opened(written) as page:
        word = page.locator("#from .word").first
        word.click()
        page.keyboard.press("Escape")
        assert page.locator(".word[aria-selected=true]").count() == 0
        word.click()
        page.mouse.move(0, 0)
        assert page.locator(".word[aria-selected=true]").count() == 1


def test_everything_that_is_operated_has_a_name(opened, written):
    with opened(written) as page:
        tree = page.locator("body").aria_snapshot()
    for role in ("button", "gridcell", "option", "radio", "listbox", "grid"):
        lines = re.findall(rf"^\s*- {role}\b.*", tree, re.M)
        assert lines and all('"' in line for line in lines)
    assert 'gridcell "layer 1, head 2, entropy' in tree


CONTRASTS = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = (c) => c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4;
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.data]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_legible_in_both_themes_and_at_any_width(opened, written, long, theme):
    for file in (written, long):
        with opened(file, color_scheme=theme) as page:
            assert page.locator("html").get_attribute("data-theme") == theme
            for width, form in ((1280, "Lines"), (1280, "Table"), (390, "Table"), (390, "Lines")):
                page.set_viewport_size({"width": width, "height": 800})
                page.get_by_text(form, exact=True).click()
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                contrasts = page.evaluate(CONTRASTS)
                assert len(contrasts) > 60 and min(contrasts)[0] >= 4.5, min(contrasts)


def test_the_theme_is_changed_by_its_button(opened, written):
    with opened(written) as page:
        colours = []
        for _ in range(3):
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.locator("#theme").click()
        assert colours[0] == colours[2] != colours[1]


# ---- what must not happen


def test_words_stay_text(opened, tmp_path):
    with opened(made(tmp_path / "attention.html", HOSTILE), color_scheme="dark") as page:
        assert page.locator("h1").text_content() == " ".join(HOSTILE)
        for place in ("#from bdi", "#to bdi", ".chip bdi"):
            assert texts(page, place) == HOSTILE
        for i, word in enumerate(HOSTILE):
            page.locator(".chip").nth(i).click()
            assert word in page.locator("#guesses-title").text_content()
            page.locator("#from .word").nth(i).focus()
            assert page.locator("#reading").text_content().startswith(f"{word} attends to ")
        assert texts(page, "#guesses bdi")[:5] == HOSTILE[:5]
        assert page.evaluate("[window.hit, document.scripts.length, document.images.length]") == [None, 2, 0]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_sentences_of_the_user_too(opened, script, trained, tmp_path):
    sentence = "</script><script>hit=1</script> \"&amp;' 🦊 שלום"
    flags = "--html", "--model", trained / "model", "--output", tmp_path, sentence
    assert script("visualize_attention", *flags)[0] == 0
    with opened(tmp_path / "attention.html") as page:
        assert page.locator("h1").text_content() == sentence
        assert page.evaluate("[window.hit, document.scripts.length]") == [None, 2]


def test_the_page_may_not_reach_a_network(browser, written):
    page = browser.new_page()
    page.goto(written.as_uri())
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    refused = page.evaluate("""async () => {
        const seen = [];
        document.addEventListener("securitypolicyviolation", (event) => seen.push(event.violatedDirective));
        await fetch("http://127.0.0.1:9/").catch(() => {});
        const add = (tag, name, value) => {
            const element = document.createElement(tag);
            element[name] = value;
            document.body.append(element);
        };
        add("img", "src", "http://127.0.0.1:9/");
        add("script", "textContent", "window.hit = 1");
        await new Promise((done) => setTimeout(done, 50));
        return [seen.sort(), window.hit ?? null];
    }""")
    page.close()
    assert refused == [["connect-src", "img-src", "script-src-elem"], None]


def test_a_page_is_small(long):
    assert long.stat().st_size < 500_000  # the promise is a megabyte


def test_a_sentence_too_long_for_a_page_is_refused(script, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "MAX_BYTES", 9 * 25 * 8 / 3)  # nine maps of five tokens by five
    flags = "--html", "--model", trained / "model", "--output", tmp_path / "out"
    assert script("visualize_attention", *flags, "the cat eats")[0] == 0
    (tmp_path / "out" / "attention.html").write_text("before")
    status, out, err = script("visualize_attention", *flags, "the big cat eats")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "6 tokens, and a page has room for 5" in err and "(--html)" in err
    assert (tmp_path / "out" / "attention.html").read_text() == "before"
