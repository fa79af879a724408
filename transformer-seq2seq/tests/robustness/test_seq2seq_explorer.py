"""The page that visualize_attention.py --html writes, in a headless Chromium: what it shows are the model's
figures, it runs without a network and by the keyboard alone, and whatever stands in a prompt stays text."""

import os
import re
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from playwright.sync_api import sync_playwright

from decoding import generate
from seq2seq import marian
from seq2seq.common.plots import with_means
from seq2seq.explorer import page as explorer
from transformer import Attentions, padding_mask

PROMPT = "The zebra bakes the bread"
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
    """The page of a prompt with an unknown word."""
    place = tmp_path_factory.mktemp("page")
    flags = "--html", "--model", trained / "model", "--output", place
    done = command("visualize_attention.py", *flags, PROMPT, cwd=place)
    assert (done.returncode, done.stdout) == (0, f"{place / 'attention.html'}\n"), done.stderr
    assert [path.name for path in place.iterdir()] == ["attention.html"]
    return place / "attention.html"


@pytest.fixture(scope="module")
def exact(trained):
    """What the model computes for that prompt: the words of the output, the weights of the three attentions
    and the probabilities of the next word, from the model alone."""
    model, tokenizer = marian.load(trained / "model", torch.device("cpu"))
    source = torch.tensor([tokenizer.encode(PROMPT).ids])
    output = [*generate(model, source, 16)[0][0].ids, model.config.eos_id]
    with torch.no_grad():
        memory, encoder = model.encode(source, need_weights=True)
        attentions, target = Attentions(), torch.tensor([[model.config.pad_id, *output[:-1]]])
        mask = padding_mask(source, model.config.pad_id)
        logits = model.project(model.decode(target, memory, mask, attentions=attentions))[0]
    return SimpleNamespace(
        words=[tokenizer.id_to_token(token).removeprefix("▁") for token in output],
        cross=torch.stack(attentions.cross)[:, 0],
        decoder=torch.stack(attentions.decoder)[:, 0],
        encoder=torch.stack(encoder)[:, 0],
        probabilities=logits.softmax(dim=-1),
        tokenizer=tokenizer,
    )


def made(path, asked, output, layers=2, heads=2):
    """A page of random attention between any words."""
    torch.manual_seed(0)
    attentions = {}
    sides = {
        "cross": (output, asked),
        "decoder": (output, ["start", *output[:-1]]),
        "encoder": (asked, asked),
    }
    for kind, (rows, columns) in sides.items():
        scores = 3 * torch.randn(layers, heads, len(rows), len(columns))
        if kind == "decoder":
            scores = scores.masked_fill(~torch.ones_like(scores[0, 0]).tril().bool(), -torch.inf)
        maps = with_means(scores.softmax(dim=-1))
        spread = torch.zeros(layers + 1, heads + 1)
        attentions[kind] = explorer.attention_data(maps, spread, rows, columns, kind)
    steps = [[{"token": word, "probability": 0.2} for word in [one, *asked[:4]]] for one in output]
    path.write_text(explorer.render(" ".join(asked), attentions, steps, None, None), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The page of a prompt and an output of 40 words each, of a model of 4 layers with 8 heads."""
    words = [*(f"{'long' * (i % 4)}word{i}" for i in range(40)), "</s>"]
    return made(tmp_path_factory.mktemp("long") / "attention.html", words, words, 4, 8)


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def choose_kind(page, kind):
    page.locator(f"#kind label:has([value={kind}])").click()


# ---- the figures


@pytest.mark.parametrize("kind", ["cross", "decoder", "encoder"])
def test_every_weight_shown_is_the_models(opened, written, exact, kind):
    weights = getattr(exact, kind)
    with opened(written) as page:
        choose_kind(page, kind)
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
        words = texts(page, "#from bdi"), texts(page, "#to bdi")
        bits = texts(page, ".head span")
    asked = ["The", "<unk>", *PROMPT.split()[2:], "</s>"]
    read = ["start", *exact.words[:-1]]
    assert words == {"cross": (exact.words, asked), "decoder": (exact.words, read), "encoder": (asked, asked)}[kind]
    n_layers, n_heads = weights.shape[:2]
    for i, figures in enumerate(shown):
        layer, head = divmod(i, n_heads + 1)
        layers = weights.mean(0) if layer == n_layers else weights[layer]
        chosen = layers.mean(0) if head == n_heads else layers[head]
        for t, row in enumerate(figures):
            seen = row[: t + 1] if kind == "decoder" else row
            assert set(row[len(seen) :]) <= {""}  # what is forbidden has no figure
            assert all(re.fullmatch(r"[01]\.\d{3}", figure) for figure in seen)
            off = (torch.tensor([float(figure) for figure in seen]) - chosen[t, : len(seen)]).abs().max()
            assert off <= 0.0005 + 1e-6
    assert columns == [list(column) for column in zip(*shown[-1], strict=True)]
    entropy = -(weights * weights.clamp(min=1e-30).log2()).sum(-1).mean(-1)
    own = [bits[layer * (n_heads + 1) + head] for layer in range(n_layers) for head in range(n_heads)]
    assert own == [f"{abs(value):.2f}" for value in entropy.flatten().tolist()]


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
        page.locator(".head").nth(0).click()
        page.locator("#from .word").nth(2).focus()
        weights = torch.tensor([float(figure) for figure in texts(page, "#to .figure")])
        for form in ("Lines", "Table"):
            page.get_by_text(form, exact=True).click()
            greens = torch.tensor(page.evaluate(DRAWN))[weights.argsort()]
            # a thin line is partly transparent, and its colour read back with a small error
            assert bool((greens[1:] <= greens[:-1] + 3).all()) and greens[-1] < greens[0] - 50


def test_each_step_shows_what_is_written_and_the_likeliest_next_words(opened, written, exact):
    with opened(written) as page:
        choose_kind(page, "decoder")
        for step in range(1, len(exact.words) + 1):
            page.locator("#step").fill(str(step))
            assert page.locator("#written bdi:not(.later)").all_text_contents() == exact.words[:step]
            best = exact.probabilities[step - 1].topk(5)
            expected = [
                (
                    exact.tokenizer.id_to_token(token).removeprefix("▁"),
                    f"{100 * p:.1f} %" if p >= 5e-4 else "< 0.1 %",
                )
                for token, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            assert list(zip(texts(page, "#next bdi"), texts(page, "#next .figure"), strict=True)) == expected
            assert texts(page, "#next .taken bdi") == [exact.words[step - 1]]
            assert texts(page, "#from .word:not(.later) bdi") == exact.words[:step]
            assert texts(page, "#to .word:not(.later) bdi") == ["start", *exact.words][:step]
            if step < len(exact.words):  # the newest word is chosen
                figures = [float(figure) for figure in texts(page, "#to .word:not(.later) .figure")]
                assert figures == pytest.approx(exact.decoder.mean((0, 1))[step - 1, :step].tolist(), abs=6e-4)


def test_the_triangle_grows(opened, written, exact):
    """In small pictures and in the table: a row and a column with every word, the half above the diagonal
    without colour."""
    dots = """() => {
        const canvas = document.querySelector(".head canvas");
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
        copy.drawImage(canvas, 0, 0);
        const all = copy.getImageData(0, 0, canvas.width, canvas.height).data;
        return [...all].filter((_, i) => i % 4 === 3).map((alpha) => alpha > 0);
    }"""
    size = len(exact.words)
    with opened(written) as page:
        choose_kind(page, "decoder")
        for step in (1, 3, size):
            page.locator("#step").fill(str(step))
            there = torch.tensor(page.evaluate(dots)).view(size, size)
            expected = torch.ones(size, size).tril().bool()
            expected[step:] = False
            assert torch.equal(there, expected)
        choose_kind(page, "encoder")
        page.locator("#step").fill("1")
        assert all(page.evaluate(dots))  # it was computed before the first step


def test_it_plays_word_by_word(opened, written, exact):
    with opened(written) as page:
        page.clock.install()
        page.locator("#play").click()
        steps = []
        for _ in exact.words:
            steps.append(page.locator("#step-name").inner_text())
            page.clock.run_for(1000)
        assert steps == [f"word {i} of {len(exact.words)}" for i in range(1, len(exact.words) + 1)]
        assert page.locator("#play").inner_text() == "Play"


def test_pointing_at_a_word_or_a_cell_says_its_figures(opened, written, exact):
    with opened(written) as page:
        page.locator("#from .word").nth(2).hover()
        figures = texts(page, "#to .figure")
        reading = page.locator("#reading").inner_text()
        assert reading.startswith(f"{exact.words[2]} attends to ") and max(figures) in reading
        page.mouse.move(0, 0)
        assert set(texts(page, ".word .figure")) == {""}
        page.get_by_text("Table", exact=True).click()
        box = page.locator("#canvas").bounding_box()
        columns, rows = len(PROMPT.split()) + 1, len(exact.words)
        page.mouse.move(box["x"] + 1.5 * box["width"] / columns, box["y"] + 2.5 * box["height"] / rows)
        assert page.locator("#reading").inner_text() == f"{exact.words[2]} attends to <unk> {figures[1]}"


def test_the_head_asked_for_is_shown_at_first(opened, script, trained, tmp_path):
    flags = "--html", "--model", trained / "model", "--output", tmp_path, "--layer", 1, "--head", 2, "Rome?"
    assert script("visualize_attention", *flags)[0] == 0
    with opened(tmp_path / "attention.html") as page:
        assert page.locator("#map-title").inner_text() == "Layer 1, head 2"
        assert page.locator(".head[aria-selected=true]").count() == 1
        choose_kind(page, "encoder")
        assert page.locator("#map-title").inner_text() == "Layer 1, head 2"


# ---- the keyboard, colours and widths


def test_everything_is_reached_by_the_keyboard(opened, written, exact):
    with opened(written) as page:

        def focused():
            return page.evaluate("""() => {
                const { activeElement } = document;
                const radio = activeElement.type === "radio";
                const seen = radio ? activeElement.nextElementSibling : activeElement;
                const { outlineStyle, outlineWidth } = getComputedStyle(seen);
                return [activeElement.closest("[id]").id, outlineStyle, parseFloat(outlineWidth)];
            }""")

        def press(*keys):
            for key in keys:
                page.keyboard.press(key)

        stops = []
        for _ in range(8):
            press("Tab")
            name, style, width = focused()
            stops.append(name)
            assert style == "solid" and width >= 2
        assert stops == ["theme", "play", "step", "kind", "heads", "form", "from", "to"]

        page.locator("#step").focus()
        press("Home", "ArrowRight")
        assert page.locator("#step-name").inner_text() == f"word 2 of {len(exact.words)}"
        page.locator("#kind input").first.focus()
        press("ArrowRight")
        assert page.locator("#to-title").inner_text().startswith("written before")
        page.locator(".head").first.focus()
        titles = []
        for key in ("ArrowRight", "ArrowDown", "End", "Home"):
            press(key)
            titles.append(page.locator("#map-title").inner_text())
        last = "Mean of all layers, mean of all heads"
        assert titles == ["Layer 1, head 2", "Mean of all layers, head 2", last, "Layer 1, head 1"]
        page.locator("#from .word").first.focus()
        press("ArrowDown", "ArrowDown", "End")  # the third is not yet written
        assert page.locator("#reading").inner_text().startswith(f"{exact.words[1]} attends to ")
        press("Tab", "End")
        assert page.locator("#reading").inner_text().startswith(f"{exact.words[0]} is attended to by ")
        press("Escape")
        assert page.locator(".word[aria-selected=true]").count() == 0
        page.locator("#form input").first.focus()
        press("ArrowRight")
        assert page.locator("#figure").get_attribute("data-form") == "table"


def test_a_list_stays_reachable_when_its_chosen_word_is_unwritten(opened, written, exact):
    with opened(written) as page:
        page.locator("#step").focus()
        page.keyboard.press("End")
        page.locator("#from .word").last.focus()
        page.locator("#step").focus()
        page.keyboard.press("Home")
        assert page.locator("#from .word[tabindex='0']:visible").count() == 1


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
    for role in ("button", "gridcell", "option", "radio", "listbox", "grid", "slider"):
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
                choose_kind(page, "decoder" if form == "Table" else "cross")
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
    with opened(made(tmp_path / "attention.html", HOSTILE, HOSTILE[::-1]), color_scheme="dark") as page:
        assert page.locator("h1").text_content() == " ".join(HOSTILE)
        assert texts(page, "#from bdi") == texts(page, "#written bdi") == HOSTILE[::-1]
        assert texts(page, "#to bdi") == HOSTILE
        for i, word in enumerate(HOSTILE[::-1]):
            page.locator("#from .word").nth(i).focus()
            assert page.locator("#reading").text_content().startswith(f"{word} attends to ")
        assert texts(page, "#next bdi")[1:] == HOSTILE[:4]
        assert page.evaluate("[window.hit, document.scripts.length, document.images.length]") == [None, 2, 0]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_prompts_of_the_user_too(opened, script, trained, tmp_path):
    prompt = "</script><script>hit=1 שלום"
    flags = "--html", "--model", trained / "model", "--output", tmp_path, prompt
    assert script("visualize_attention", *flags)[0] == 0
    with opened(tmp_path / "attention.html") as page:
        assert page.locator("h1").text_content() == prompt
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
    assert long.stat().st_size < 1_000_000


def test_a_prompt_too_long_for_a_page_is_refused(script, trained, tmp_path, monkeypatch):
    flags = "--html", "--model", trained / "model", "--output", tmp_path / "out", PROMPT
    assert script("visualize_attention", *flags)[0] == 0
    (tmp_path / "out" / "attention.html").write_text("before")
    monkeypatch.setattr(explorer, "MAX_BYTES", 100)
    status, out, err = script("visualize_attention", *flags)
    assert (status, out) == (2, "")
    line = err.splitlines()[-1]
    assert "a prompt of 6 tokens" in line and "shorten the prompt" in line and line.endswith("(--html)")
    assert (tmp_path / "out" / "attention.html").read_text() == "before"


def test_an_output_that_fills_all_positions_has_a_page(opened, script, tmp_path, make_model, tokenizer):
    """Such an output has no </s>."""
    model = make_model(tokenizer.get_vocab_size())
    with torch.no_grad():
        model.output_bias[0] = -100  # </s> never comes
    marian.save(tmp_path / "model", model, tokenizer)
    flags = "--html", "--model", tmp_path / "model", "--output", tmp_path, "Good morning"
    assert script("visualize_attention", *flags)[0] == 0
    with opened(tmp_path / "attention.html") as page:
        assert page.locator("#step-name").inner_text() == "word 16 of 16"
