"""The page that visualize_attention.py --html writes, in a headless Chromium: what it shows are the figures of the
model, whatever is typed, hidden or switched off; it runs without a network and by the keyboard alone, and whatever
stands in a sentence stays text."""

import math
import re
from contextlib import contextmanager
from urllib.parse import quote_plus, urlencode

import pytest
import torch
from playwright.sync_api import expect

from mlm import MaskFiller
from mlm.common import page_data
from mlm.common.web_page import pack_weights
from mlm.explorer import page as explorer
from mlm.tokenizer import MASK

SENTENCE = f"the cat {MASK} the small zebra"
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
def opened(browser):
    """with opened(file, width, link) as page: the page in a window of that width, with that state in its address, all
    computed. At the end it must have asked for nothing but its own file, and have reported nothing."""

    @contextmanager
    def at(file, width=1280, link=None, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.set_default_timeout(5000)
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri() + (f"#{urlencode(link)}" if link else ""))
        page.wait_for_selector("#answer .card")
        settle(page)
        yield page
        page.close()
        assert ({url.split("#")[0] for url in asked}, said) == ({file.as_uri()}, [])

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


def settle(page):
    """Wait until all that the page computes is shown, and its state is in its address."""
    page.evaluate("""async () => {
        do await new Promise((done) => setTimeout(done, 20));
        while (jobs.newest);
    }""")


@pytest.fixture(scope="module")
def filler(trained):
    """The trained model with the rounded weights of the page."""
    filler = MaskFiller.load(trained / "model", "cpu")
    with torch.no_grad():
        for parameter in filler.model.parameters():
            parameter.copy_(parameter.half())
    return filler


@pytest.fixture(scope="module")
def made(filler, trained, tmp_path_factory):
    """made(text, **changes) -> the file of a page for a text, with some of its data changed."""
    place = tmp_path_factory.mktemp("made")

    def make(text, **changes):
        ids = filler.tokenizer.encode(text).ids
        data = explorer.make_data(filler, text, ids, None, None, trained / "nothing")
        file = place / f"{len(list(place.iterdir()))}.html"
        file.write_text(explorer.render(data | changes), encoding="utf-8")
        return file

    return make


def still(words, layers=2, heads=2, text=None):
    """The data of a page without its model: random attention between any words."""
    torch.manual_seed(0)
    weights = (3 * torch.randn(layers, heads, len(words), len(words))).softmax(dim=-1)
    guess = {"best": [{"token": word, "probability": 0.2, "right": False} for word in words[:5]], "itself": 0.1}
    reading = {
        "text": text or " ".join(words),
        "words": words,
        "weights": pack_weights(weights),
        "guesses": [guess] * len(words),
    }
    sizes = {"n_layers": layers, "n_heads": heads, "d_model": 8}
    return {"model": None, "tokenizer": None, "reading": reading, "why": "It is large.", "config": sizes}


@torch.no_grad()
def run(filler, text, off=(), hidden=()):
    """Let PyTorch compute what the page does -> the states of every layer (L + 1, S, D) and the attention weights
    (L, H, S, S), with some heads off, as "encoder.LAYER.HEAD", and some positions hidden."""
    ids, encoder = torch.tensor([filler.tokenizer.encode(text).ids]), filler.model.encoder
    ids[0, list(hidden)] = filler.special.mask
    states, handles = [], []
    handles.append(encoder.embeddings.register_forward_hook(lambda _m, _i, out: states.append(out[0])))
    for number, layer in enumerate(encoder.layers, start=1):
        heads = [int(name.split(".")[2]) for name in off if name.startswith(f"encoder.{number}.")]
        d_k = layer.attention.d_k

        def clear(_module, inputs, heads=heads, d_k=d_k):
            for head in heads:
                inputs[0][..., (head - 1) * d_k : head * d_k] = 0

        handles.append(layer.attention.output.register_forward_pre_hook(clear))
        handles.append(layer.register_forward_hook(lambda _m, _i, out: states.append(out[0][0])))
    weights = encoder(ids, need_weights=True)[1]
    for handle in handles:
        handle.remove()
    return torch.stack(states), torch.stack(weights)[:, 0]


@torch.no_grad()
def log_probs(filler, text, off=(), hidden=(), position=None):
    """Return the log-probabilities (V) at a hidden position, by default the first [MASK]'s."""
    if position is None:
        position = filler.tokenizer.encode(text).ids.index(filler.special.mask)
    return filler.model.head(run(filler, text, off, hidden)[0][-1, position]).log_softmax(dim=-1)


def five(filler, logs):
    """Return the five likeliest words as the page lists them."""
    best = logs.exp().topk(5)
    names = [filler.show([(token, 0)])[0]["token"] for token in best.indices.tolist()]
    return [f"{name} {percent(p)}" for name, p in zip(names, best.values.tolist(), strict=True)]


def percent(probability):
    return f"{100 * probability:.1f} %" if probability >= 0.0005 else "< 0.1 %"


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def guesses(page, card=0):
    """Return the likeliest words of one list of guesses."""
    lines = page.locator("#guesses .card").nth(card).locator("li:not(.apart)").all_inner_texts()
    return [" ".join(line.split("\n")) for line in lines]


def write(page, text):
    page.locator("#text").fill(text)
    settle(page)


def click(page, selector, index=0):
    page.locator(selector).nth(index).click()
    settle(page)


# ---- the figures


def test_every_weight_shown_is_the_models(opened, written, filler):
    weights = run(filler, SENTENCE)[1]
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
    assert words == ["[CLS]", "the", "cat", MASK, "the", "small", "[UNK: zebra]", "[SEP]"]
    assert all(re.fullmatch(r"[01]\.\d{3}", figure) for head in shown for row in head for figure in row)
    n_layers, n_heads = weights.shape[:2]
    for i, figures in enumerate(shown):
        layer, head = divmod(i, n_heads + 1)
        layers = weights.mean(0) if layer == n_layers else weights[layer]
        exact = layers.mean(0) if head == n_heads else layers[head]
        off = (torch.tensor([[float(figure) for figure in row] for row in figures]) - exact).abs().max()
        assert off <= 0.0005 + 1e-5
    assert columns == [list(column) for column in zip(*shown[-1], strict=True)]


def test_the_figures_of_a_head_are_its_own(opened, written, filler):
    """Its entropy, and the dots of its picture: the heavier, the darker."""
    weights = run(filler, SENTENCE)[1]
    entropy = -(weights * weights.log2()).sum(-1).mean(-1)
    with opened(written) as page:
        bits = [float(text) for text in texts(page, ".head span")]
        greens = page.evaluate("""() => [...document.querySelectorAll(".head canvas")].map((canvas) => {
            const dots = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return [...dots].filter((_, i) => i % 4 === 1);
        })""")
        page.locator(".head").nth(3).click()
        title = page.locator("#map-title").inner_text(), page.locator("#map-entropy").inner_text()
    assert [bits[i] for i in (0, 1, 3, 4)] == pytest.approx(entropy.flatten().tolist(), abs=0.0051)
    assert title == ("Layer 2, head 1", f"entropy {bits[3]:.2f} bits, of 3.00 at most")
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


def test_pointing_at_a_word_or_a_cell_says_its_figures(opened, written):
    with opened(written) as page:
        page.locator("#from .word").nth(2).hover()
        figures = texts(page, "#to .figure")
        reading = page.locator("#reading").inner_text()
        assert reading.startswith("cat attends to ") and max(figures) in reading
        page.mouse.move(0, 0)
        assert page.locator("#reading").inner_text().startswith(f"{MASK} attends to ")  # the one looked at
        page.get_by_text("Table", exact=True).click()
        page.locator("#canvas").scroll_into_view_if_needed()
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 3.5 * box["width"] / 8, box["y"] + 2.5 * box["height"] / 8)
        assert page.locator("#reading").inner_text() == f"cat attends to {MASK} {figures[3]}"
        page.mouse.move(0, 0)
        page.locator("#all").click()
        assert set(texts(page, ".word .figure")) == {""}


def test_the_head_asked_for_is_shown_at_first(opened, made):
    for changes, title in (({"layer": 2}, "Layer 2, mean of all heads"), ({"head": 1}, "Mean of all layers, head 1")):
        with opened(made("the cat", **changes)) as page:
            assert page.locator("#map-title").inner_text() == title
            assert page.locator(".cell[aria-selected=true]").count() == 1


# ---- typing and hiding


def test_what_is_typed_is_read_at_once(opened, written, filler):
    with opened(written) as page:
        for text in (f"my mother bakes {MASK} bread today", f"{MASK} king wears a {MASK} crown"):
            write(page, text)
            assert texts(page, "#from bdi") == ["[CLS]", *text.split(), "[SEP]"]
            exact = run(filler, text)
            position = text.split().index(MASK) + 1
            page.locator("#from .word").nth(position).focus()
            shown = torch.tensor([float(figure) for figure in texts(page, "#to .figure")])
            assert (shown - exact[1].mean((0, 1))[position]).abs().max() <= 0.0005 + 1e-5
            masks = [i for i, word in enumerate(text.split(), start=1) if word == MASK]
            for card, at in enumerate(masks):
                assert guesses(page, card) == five(filler, log_probs(filler, text, position=at))
        assert page.locator("#guesses .card").count() == 2


def test_words_are_hidden_and_shown_by_clicks(opened, written, filler):
    """Several at once; the attention and all guesses follow."""
    text = "the cat chases the small mouse"
    with opened(written) as page:
        write(page, text)
        assert page.locator("#guesses .card").inner_text().startswith("Nothing is hidden")
        click(page, ".chip", 1)
        click(page, ".chip", 4)
        assert texts(page, ".chip[aria-pressed=true]") == texts(page, "#from bdi")[2:6:3] == [MASK, MASK]
        for card, (position, word) in enumerate([(2, "cat"), (5, "small")]):
            logs = log_probs(filler, text, hidden=(2, 5), position=position)
            assert guesses(page, card) == five(filler, logs)
            assert texts(page, "#guesses .card h3")[card] == f"For {word}, hidden, the model guesses"
            right = page.locator("#guesses .card").nth(card).locator("li.right")
            own = percent(logs[filler.tokenizer.token_to_id(word)].exp().item())
            assert right.all_inner_texts()[0].split("\n") == [word, own]
        exact = run(filler, text, hidden=(2, 5))[1].mean((0, 1))[0]
        page.locator("#from .word").first.focus()
        shown = torch.tensor([float(figure) for figure in texts(page, "#to .figure")])
        assert (shown - exact).abs().max() <= 0.0005 + 1e-5
        click(page, ".chip", 1)
        assert texts(page, "#guesses .card h3") == ["For small, hidden, the model guesses"]


def test_what_is_hidden_stays_so_while_one_types(opened, written):
    with opened(written) as page:
        write(page, "the cat chases the small mouse")
        click(page, ".chip", 4)
        write(page, "today the cat chases the small mouse")
        assert texts(page, ".chip")[5] == MASK
        write(page, "today the cat chases the small bird")
        assert texts(page, ".chip")[5] == MASK
        write(page, "the big bird")
        assert MASK not in texts(page, ".chip")


def test_each_word_is_scored_as_fill_mask_scores_it(opened, written, filler):
    """Under each word stands its probability given the others, and a click there says what it would be, hidden."""
    text = "the cat eats the big zebra"
    scored = filler.score(text)
    with opened(written) as page:
        write(page, text)
        expected = [one["surprisal"] for one in scored["tokens"]]
        shown = texts(page, ".meter .figure")
        assert shown == ["–" if one is None else percent(math.exp(-one)) for one in expected]
        assert page.locator("#perplexity .figure").inner_text() == f"{scored['pseudo_perplexity']:.2f}"
        click(page, ".meter", 2)
        assert texts(page, "#guesses .card h3") == ["If eats were hidden, the model would guess"]
        assert guesses(page) == five(filler, log_probs(filler, text, hidden=(3,), position=3))
        assert page.locator(".meter[aria-pressed=true]").count() == 1


def test_a_sentence_that_is_refused_says_so_in_place(opened, written):
    with opened(written) as page:
        before = texts(page, "#from bdi")
        for text, said in (
            ("  ", "The sentence is empty; type some words."),
            ("the " * 40, "The sentence has 42 tokens, and the model takes 24; shorten it."),
            ("the [SEP] cat", "[SEP] is one of the model's special tokens; leave it out."),
        ):
            write(page, text)
            assert page.locator("#note").inner_text() == said
            assert page.locator("#text").get_attribute("aria-invalid") == "true"
            assert texts(page, "#from bdi") == before
        write(page, "the cat")
        assert page.locator("#note").inner_text() == ""
        assert texts(page, "#from bdi") == ["[CLS]", "the", "cat", "[SEP]"]


def test_the_newest_edit_wins(opened, written):
    """While one is slow, the page answers; what it would have shown is never shown."""
    with opened(written) as page:
        seen = page.evaluate("""async () => {
            const encode = filler.model.encode;
            const wait = (time) => new Promise((done) => setTimeout(done, time));
            filler.model.encode = async function (ids, off, job) {
                const end = performance.now() + 300;
                while (ids.length === 4 && performance.now() < end) await job.breathe();
                return encode.call(this, ids, off, job);
            };
            const type = (text) => {
                document.querySelector("#text").value = text;
                document.querySelector("#text").dispatchEvent(new Event("input"));
            };
            const words = () => document.querySelectorAll("#from .word").length;
            const seen = [words()];
            type("the cat");
            await wait(30);
            seen.push(words());
            const before = performance.now();
            type("the");
            while (words() !== 3) await wait(1);
            const passed = performance.now() - before;
            await wait(400);
            return [...seen, words(), passed < 250];
        }""")
    assert seen == [8, 8, 3, True]


# ---- taking apart


def test_a_head_switched_off_changes_the_answer_as_pytorch_says(opened, written, filler):
    with opened(written) as page:
        names = [f"encoder.{layer}.{head}" for layer in (1, 2) for head in (1, 2)]
        for i, name in enumerate(names):
            click(page, ".cell .switch", i)
            assert guesses(page) == five(filler, log_probs(filler, SENTENCE, off=[name]))
            assert page.locator(".cell.off").count() == 1
            then, now = log_probs(filler, SENTENCE), log_probs(filler, SENTENCE, off=[name])
            best = then.argmax().item()
            change = float(page.locator("#compare b").inner_text().replace("−", "-"))
            assert change == pytest.approx((now[best] - then[best]).item(), abs=0.006)
            assert page.locator("#changed").inner_text().startswith(f"Off: layer {name[8]}, head {name[10]}.")
            assert f"Off as well: layer {name[8]}, head {name[10]}." in page.locator("#switches").inner_text()
            click(page, "#changed button")
        assert guesses(page) == five(filler, log_probs(filler, SENTENCE))
        assert not page.locator("#changed").is_visible()


def test_what_matters_names_the_head_that_pytorch_finds(opened, written, filler):
    names = [f"encoder.{layer}.{head}" for layer in (1, 2) for head in (1, 2)]
    whole = log_probs(filler, SENTENCE)
    best = whole.argmax().item()
    changes = [(log_probs(filler, SENTENCE, off=[name])[best] - whole[best]).item() for name in names]
    with opened(written) as page:
        click(page, "#what-matters")
        rows = [texts(page, f".matters >> nth=0 >> tbody tr:nth-child({layer}) button") for layer in (1, 2)]
        shown = [float(text.replace("−", "-")) for row in rows for text in row[:2]]
        assert shown == pytest.approx(changes, abs=0.006)
        strongest = names[changes.index(min(changes))].split(".")
        assert min(changes) < -0.05
        said = page.locator("#strongest").inner_text()
        assert "most: without it" in said and f"needs layer {strongest[1]}, head {strongest[2]} most" in said
        assert [len(row) for row in rows] == [4, 4]


def test_what_matters_for_a_word_that_is_shown_is_what_matters_where_it_is_hidden(opened, made):
    """The page hides it for the question, and the attention must be that of the question, too."""
    with opened(made("the cat sat on the mat")) as page:
        click(page, ".meter", 1)
        click(page, "#what-matters")
        shown = texts(page, ".matters button")
        click(page, ".chip", 1)
        assert texts(page, ".matters button") == shown


def test_a_mask_of_the_text_is_looked_at_by_a_click_and_a_bar_is_let_go(opened, made):
    with opened(made(f"{MASK} cat {MASK}")) as page:
        for chip in (2, 0):
            click(page, ".chip", chip)
            assert page.locator(".meter[aria-pressed=true]").get_attribute("data-position") == str(chip + 1)
        click(page, ".meter", 1)
        click(page, ".meter", 1)
        assert page.locator(".meter[aria-pressed=true]").get_attribute("data-position") == "1"  # the first [MASK] again


def test_each_layers_output_is_read_as_the_last_one_is(opened, written, filler):
    states = run(filler, SENTENCE)[0]
    with opened(written) as page:
        rows = page.locator(".lens tbody tr").all_inner_texts()
    for row, layer in zip(rows, states, strict=True):
        with torch.no_grad():
            expected = five(filler, filler.model.head(layer[3]).log_softmax(dim=-1))
        assert row.split("\t")[1:] == expected


def test_the_link_holds_the_whole_state(opened, written):
    with opened(written) as page:
        write(page, "the cat chases the small mouse")
        click(page, ".chip", 1)
        click(page, ".meter", 4)
        click(page, ".cell .switch", 3)
        click(page, ".part", 2)
        click(page, "#what-matters")
        page.locator(".head").nth(1).click()
        page.get_by_text("Table", exact=True).click()
        page.wait_for_timeout(400)
        address = page.url

        def shown(page):
            selectors = "#guesses", "#perplexity", "#changed", ".matters", "#map-title", "#switches", ".lens"
            return [page.locator(one).first.inner_text() for one in selectors], page.locator("#text").input_value()

        before = shown(page)
        page.goto("about:blank")
        page.goto(address)
        settle(page)
        assert shown(page) == before
        assert page.locator("#figure").get_attribute("data-form") == "table"


def test_a_link_holds_the_text_too(opened, written, made):
    """Opened in the page of another sentence, it shows the same; so does that of an empty one."""
    with opened(written) as page, opened(made("the cat")) as other:
        for text in (SENTENCE, ""):
            write(page, "the dog")
            write(page, text)
            expect(page).to_have_url(re.compile(f"#text={re.escape(quote_plus(text))}(&|$)"))
            other.evaluate("(hash) => (location.hash = hash)", page.evaluate("location.hash"))
            settle(other)
            assert other.locator("#text").input_value() == text


def test_a_link_written_by_hand_needs_no_text(opened, written):
    with opened(written, link={"off": "positions"}) as page:
        assert page.locator("#text").input_value() == SENTENCE
        assert page.locator(".part[aria-checked=false]").count() == 1


def test_a_wrong_link_does_no_harm(opened, written):
    link = {"text": "the cat", "hide": "0,99,x", "at": "-3", "off": "encoder.9.9,nothing", "layer": "77", "form": "x"}
    with opened(written, link=link) as page:
        assert texts(page, "#from bdi") == ["[CLS]", "the", "cat", "[SEP]"]
        assert page.locator("[aria-checked=false]").count() == 0


def test_each_experiment_sets_the_page_and_asks(opened, written, filler):
    with opened(written) as page:
        buttons, asked = page.locator("#try .choices button"), []
        for i in range(buttons.count()):
            buttons.nth(i).click()
            settle(page)
            asked.append(page.locator("#try .question").inner_text())
            assert page.locator("#try [aria-pressed=true]").count() == 1
        assert len(set(asked)) == 5 and all("?" in text for text in asked)
        assert page.locator(".part[aria-checked=false]").count() == 2  # the last one's
        click(page, "#try button", 1)
        assert page.locator("#text").input_value() == " ".join(reversed(SENTENCE.split()))


def test_what_matters_is_asked_where_the_model_is_unsure(opened, made, filler):
    """Of the [MASK]s and the words that it guesses right, at the one that it is least sure of."""
    text = f"{MASK} king wears a {MASK} crown"
    ids, sure = filler.tokenizer.encode(text).ids, {}
    for i in range(1, len(ids) - 1):
        best = log_probs(filler, text, hidden=[i], position=i).exp().max(dim=-1)
        if ids[i] != filler.special.unk and ids[i] in (filler.special.mask, best.indices.item()):
            sure[i] = best.values.item()
    with opened(made(text)) as page:
        page.locator(".part").nth(1).click()
        page.get_by_text("Which head matters?").click()
        settle(page)
        place = page.locator(".meter[aria-pressed=true]").get_attribute("data-position")
        assert int(place) == min(sure, key=sure.get)
        assert "without it" in page.locator("#strongest").inner_text()
        assert page.locator(".part[aria-checked=false]").count() == 0


# ---- without the model, and as it was in training


def test_a_model_too_large_for_a_page_is_shown_with_one_sentence(
    opened, script, trained, filler, tmp_path, monkeypatch
):
    monkeypatch.setattr(page_data, "MAX_PAGE_BYTES", 1000)
    flags = "--html", "--model", trained / "model", "--output", tmp_path, SENTENCE
    status, _, err = script("visualize_attention", *flags)
    assert status == 0 and "so it shows this text only" in err
    with opened(tmp_path / "attention.html") as page:
        assert page.locator("#sentence").inner_text() == SENTENCE
        assert "so it shows this text only" in page.locator("#why").inner_text()
        assert page.locator(".live, .switch, textarea, .meter").count() == 0
        page.locator("#from .word").nth(2).focus()
        shown = torch.tensor([float(figure) for figure in texts(page, "#to .figure")])
        assert (shown - run(filler, SENTENCE)[1].mean((0, 1))[2]).abs().max() < 0.002
        for i, word in enumerate(SENTENCE.split()):
            if word != MASK:
                page.locator(".chip").nth(i).click()
            asked = " ".join([*SENTENCE.split()[:i], MASK, *SENTENCE.split()[i + 1 :]])
            best = filler(asked)[asked.split()[:i].count(MASK)]
            for line, one in zip(guesses(page), best, strict=True):
                assert line.split()[0] == one["token"]
            page.locator(".chip").nth(i).click()


def test_training_is_replayed(opened, made):
    """With a moment chosen the page shows what the model made of the text then; whoever types leaves it."""
    early = still(["[CLS]", "early", "[SEP]"], text="early")["reading"]
    watched = [{"step": 10, "epoch": 1, **early}, {"step": 20, "epoch": 2, **early}]
    curve = [{"step": step, "train_loss": 3 - step / 10, "held_out_loss": 3.0} for step in (10, 20)]
    with opened(made("the cat", watched=watched, curve=curve)) as page:
        assert texts(page, "#from bdi") == ["[CLS]", "the", "cat", "[SEP]"]
        click(page, ".cell .switch", 0)
        page.locator("#replay input[type=range]").focus()
        page.keyboard.press("Home")
        assert texts(page, "#from bdi") == ["[CLS]", "early", "[SEP]"]
        assert page.locator(".cell [aria-checked=false]").count() == 0  # all parts were on then
        assert page.locator("#apart").get_attribute("inert") is not None
        assert not page.locator("#changed").is_visible()
        assert page.locator("#perplexity").inner_text() == ""  # the trained model's is not this moment's
        write(page, "the dog")
        assert texts(page, "#from bdi") == ["[CLS]", "the", "dog", "[SEP]"]
        assert page.locator("#apart").get_attribute("inert") is None
        assert "Pseudo-perplexity" in page.locator("#perplexity").inner_text()


def test_after_the_training_replayed_stands_what_was_typed_before(opened, made):
    early = still(["[CLS]", "early", "[SEP]"], text="early")["reading"]
    with opened(made("the cat", watched=[{"step": 10, "epoch": 1, **early}], curve=[])) as page:
        write(page, "the small dog")
        click(page, ".chip", 1)
        before = texts(page, "#guesses li")
        for key, text in (("Home", "early"), ("End", "the small dog")):
            page.locator("#replay input[type=range]").focus()
            page.keyboard.press(key)
            settle(page)
            assert page.locator("#text").input_value() == text
        assert texts(page, ".chip") == ["the", MASK, "dog"] and texts(page, "#guesses li") == before


def test_a_moment_shows_its_own_masks_first(opened, made):
    """Whatever else was hidden when it was chosen, or is while it is shown."""
    text = f"the cat {MASK}"
    reading = still(["[CLS]", "the", "cat", MASK, "[SEP]"], text=text)["reading"]
    reading["guesses"] = [
        None,
        *({**reading["guesses"][i], "itself": None if i == 3 else 0.1} for i in (1, 2, 3)),
        None,
    ]
    moments = {"watched": [{"step": 10, "epoch": 1, **reading}], "curve": []}
    with opened(made(text, **moments)) as page:
        click(page, ".chip", 1)
        page.locator("#replay input[type=range]").focus()
        page.keyboard.press("Home")
        settle(page)
        titles = [f"For {MASK} the model guesses", "If cat were hidden, the model would guess"]
        assert texts(page, "#guesses h3") == titles
        assert page.locator("#reading").inner_text().startswith(f"{MASK} attends to ")
        click(page, ".chip", 0)
        assert texts(page, "#guesses h3") == [titles[0], titles[1].replace("cat", "the")]
        page.locator("#replay input[type=range]").focus()
        page.keyboard.press("End")
        settle(page)
        assert texts(page, "#guesses h3")[-1] == titles[0]


def test_at_a_moment_nothing_stands_that_is_not_of_it(opened, made):
    """A bar does what its word does, a switch switches what is shown as on, and after a text that is refused stands
    what the trained model said last."""
    early = still(["[CLS]", "early", "[SEP]"], text="early")["reading"]
    with opened(made("the cat", watched=[{"step": 10, "epoch": 1, **early}], curve=[])) as page:

        def go_back():
            page.locator("#replay input[type=range]").fill("0")
            settle(page)
            assert "step 10" in page.locator("#moment").inner_text()

        for bar_or_word in (".meter", ".chip"):
            go_back()
            click(page, bar_or_word, 1)
            assert texts(page, "#guesses h3") == ["For early, hidden, the model guesses"]
            click(page, "#moment button", 0)
            assert texts(page, "#guesses h3") == ["Nothing is hidden"]
        click(page, ".cell .switch", 0)
        go_back()
        assert page.locator(".cell [aria-checked=false]").count() == 0
        click(page, ".cell .switch", 0)
        assert page.locator(".cell [aria-checked=false]").count() == 1 and not page.locator("#moment").is_visible()
        go_back()
        write(page, "")
        assert texts(page, "#from bdi") == ["[CLS]", "the", "cat", "[SEP]"]
        assert not page.locator("#moment").is_visible() and page.locator("#apart").get_attribute("inert") is not None


def test_a_page_opened_with_a_refused_sentence_comes_back_from_a_moment(opened, made):
    """To what the trained model makes of the page's own sentence."""
    early = still(["[CLS]", "early", "[SEP]"], text="early")["reading"]
    with opened(made("the cat", watched=[{"step": 10, "epoch": 1, **early}], curve=[])) as page:
        page.evaluate("() => { sentence = null; location.hash = '#text=' }")
        settle(page)
        page.locator("#replay input[type=range]").fill("0")
        settle(page)
        assert texts(page, "#from bdi") == ["[CLS]", "early", "[SEP]"]
        click(page, "#moment button", 0)
        assert page.locator("#note").inner_text() == "The sentence is empty; type some words."
        assert texts(page, "#from bdi") == ["[CLS]", "the", "cat", "[SEP]"]
        page.evaluate("location.hash = ''")  # begins anew
        settle(page)
        assert page.locator("#text").input_value() == "the cat"


def test_all_on_ends_what_an_experiment_says(opened, written):
    with opened(written) as page:
        for all_on in ("#changed button", "#all-on"):
            click(page, "#try button", 2)
            assert page.locator("#try .question").is_visible()
            page.get_by_text("Show the outcome").click()
            assert 0 <= page.locator("#compare").bounding_box()["y"] < page.viewport_size["height"]
            click(page, all_on, 0)
            assert not page.locator("#try .question").is_visible()
            assert page.locator("#try [aria-pressed=true]").count() == 0


# ---- the keyboard, colours and widths


def test_everything_is_reached_by_the_keyboard(opened, written):
    with opened(written) as page:

        def focused():
            return page.evaluate("""() => {
                const active = document.activeElement;
                const { outlineStyle, outlineWidth } = getComputedStyle(
                    active.matches("input") ? active.nextElementSibling : active);
                return [active.closest("[id]").id, outlineStyle, parseFloat(outlineWidth)];
            }""")

        def press(*keys):
            for key in keys:
                page.keyboard.press(key)

        stops = []
        for _ in range(13):
            press("Tab")
            name, style, width = focused()
            stops.append(name)
            assert style == "solid" and width >= 2
        assert stops[:4] == ["theme", "text", "chips", "chips"] and stops[4:9] == ["try"] * 5
        assert stops[9:] == ["heads", "heads", "heads", "all"]

        page.locator("#chips .chip").first.focus()
        press("ArrowRight", "Enter")
        settle(page)
        assert "For cat, hidden, the model guesses" in texts(page, "#guesses h3")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "cat, hidden"
        press("Space")
        settle(page)
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
        press("x")
        settle(page)
        assert page.locator(".cell .switch").first.get_attribute("aria-checked") == "false"
        press("Tab", "Space")
        settle(page)
        assert page.locator(".cell .switch").first.get_attribute("aria-checked") == "true"
        page.locator("#from .word").first.focus()
        press("ArrowDown", "ArrowDown")
        assert page.locator("#reading").inner_text().startswith("cat attends to ")
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
        click(page, "#what-matters")
        tree = page.locator("body").aria_snapshot()
    for role in ("button", "switch", "textbox", "gridcell", "option", "radio", "listbox", "grid", "table"):
        lines = re.findall(rf"^\s*- {role}\b.*", tree, re.M)
        assert lines and all('"' in line for line in lines), role
    assert 'button "layer 1, head 2, entropy' in tree and 'switch "layer 1, head 2"' in tree


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
def test_it_is_legible_in_both_themes_and_at_any_width(opened, written, made, theme):
    words = ["[CLS]", *(f"{'long' * (i % 4)}word{i}" for i in range(40)), "[SEP]"]
    link = {"text": SENTENCE, "off": "encoder.2.1,encoder-ff.1", "matters": "1", "hide": "2"}
    for file in (written, made("the cat", **still(words, 4, 8))):
        with opened(file, color_scheme=theme, link=link) as page:
            assert page.locator("html").get_attribute("data-theme") == theme
            for width, form in ((2000, "Lines"), (1000, "Table"), (360, "Table"), (360, "Lines")):
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


def test_words_stay_text(opened, made):
    with opened(made("the cat", **still(HOSTILE)), color_scheme="dark") as page:
        assert page.locator("#sentence").text_content() == " ".join(HOSTILE)
        for place in ("#from bdi", "#to bdi", ".chip bdi"):
            assert texts(page, place) == HOSTILE
        for i, word in enumerate(HOSTILE):
            page.locator(".chip").nth(i).click()
            assert word in page.locator("#guesses h3").text_content()
            page.locator("#from .word").nth(i).focus()
            assert page.locator("#reading").text_content().startswith(f"{word} attends to ")
        assert texts(page, "#guesses li bdi")[:5] == HOSTILE[:5]
        assert page.evaluate("[window.hit, document.scripts.length, document.images.length]") == [None, 2, 0]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_sentences_of_the_user_too(opened, made):
    sentence = "</script><script>hit=1</script> \"&amp;' 🦊 שלום"
    with opened(made(sentence)) as page:
        assert page.locator("#text").input_value() == sentence
        for text in HOSTILE:
            write(page, text)
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


def test_a_page_is_small(written):
    assert written.stat().st_size < 500_000  # a model of 30,000 numbers


def test_a_sentence_too_long_for_a_page_is_refused(script, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(page_data, "MAX_PAGE_BYTES", 1000)
    monkeypatch.setattr(explorer, "MAX_BYTES", 4 * 25 * 8 / 3)  # four maps of five tokens by five
    flags = "--html", "--model", trained / "model", "--output", tmp_path / "out"
    assert script("visualize_attention", *flags, "the cat eats")[0] == 0
    (tmp_path / "out" / "attention.html").write_text("before")
    status, out, err = script("visualize_attention", *flags, "the big cat eats")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "6 tokens, and a page has room for 5" in err and "(--html)" in err
    assert (tmp_path / "out" / "attention.html").read_text() == "before"


def test_it_is_printed_in_the_light_theme(opened, written):
    """Its figures' colours, too, at once; then it is dark again."""
    with opened(written, color_scheme="dark") as page:
        click(page, "#what-matters", 0)
        assert "without" in page.locator("#strongest").inner_text()
        look = """() => [document.documentElement.dataset.theme,
            ...[...document.querySelectorAll(".lens td, .matters button")].map((cell) => cell.style.cssText)]"""
        dark = page.evaluate(look)
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        light = page.evaluate(look)
        assert (dark[0], light[0]) == ("dark", "light") and len(light) == len(dark) > 10
        assert sum(one != other for one, other in zip(dark, light, strict=True)) > len(dark) / 2
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(look) == dark
