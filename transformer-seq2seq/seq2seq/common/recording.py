"""A moving picture of a page: screenshots of a browser that follows a scenario, with its pointer drawn in. It needs
Playwright and Chromium, as the tests do."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median

from PIL import Image, ImageDraw
from playwright.sync_api import Locator, Page, sync_playwright

ARROW = [(0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (12, 12)]  # the pointer, in pixels from its tip
QUALITY = 70  # of WebP, from 0 to 100
SIZE = {"width": 1000, "height": 620}


class Recorder:
    """The frames of a picture and how long each is shown."""

    def __init__(self, page: Page):
        self.page, self.at = page, (page.viewport_size["width"] / 2, page.viewport_size["height"] / 2)
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def hold(self, seconds: float) -> None:
        """Show the page as it is for some time."""
        frame = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        x, y = self.at
        ImageDraw.Draw(frame).polygon([(x + dx, y + dy) for dx, dy in ARROW], fill="white", outline="black")
        self.frames.append(frame)
        self.milliseconds.append(round(1000 * seconds))

    def point(self, locator: Locator, steps: int = 5) -> None:
        """Move the pointer to the middle of an element."""
        locator.scroll_into_view_if_needed()
        box = locator.bounding_box()
        goal = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        start = self.at
        for step in range(1, steps + 1):
            self.at = tuple(a + (b - a) * step / steps for a, b in zip(start, goal, strict=True))
            self.page.mouse.move(*self.at)
            self.hold(0.05)

    def click(self, locator: Locator, seconds: float = 1.0) -> None:
        """Click on an element, and show for some time what comes of it."""
        self.point(locator)
        locator.click()
        self.page.wait_for_timeout(300)
        self.hold(seconds)

    def type(self, locator: Locator, text: str, seconds: float = 1.0) -> None:
        """Type a text into an empty field, letter by letter."""
        locator.fill("")
        for letter in text:
            locator.press_sequentially(letter)
            self.page.wait_for_timeout(60)
            self.hold(0.09)
        self.page.wait_for_timeout(300)
        self.hold(seconds)

    def save(self, path: Path) -> None:
        """Write the frames as an animated WebP that repeats for ever."""
        first, *rest = self.frames
        options = {"duration": self.milliseconds, "loop": 0, "quality": QUALITY, "method": 4}
        first.save(path, save_all=True, append_images=rest, **options)


# A page's answer to an edit is shown when its job rests for the first time; `jobs` and Job are those of page.js.
TIME_EDITS = """async (texts) => {
  const rest = Job.prototype.rest, field = document.getElementById("text"), times = [];
  for (const text of texts) {
    let shown = null;
    Job.prototype.rest = function () { shown ??= performance.now(); return rest.call(this); };
    const start = performance.now();
    field.value = text;
    field.dispatchEvent(new Event("input"));
    while (jobs.newest) await new Promise((done) => setTimeout(done, 1));
    times.push(shown - start);
  }
  Job.prototype.rest = rest;
  return times;
}"""


def time_edits(page: Page, texts: list[str]) -> float:
    """Return the median of the milliseconds from an edit of the page's text to what it shows of each of these texts,
    all that the model computes included, the painting by the browser not."""
    page.evaluate(TIME_EDITS, texts)  # the browser compiles what runs often
    return median(page.evaluate(TIME_EDITS, texts))


def record(html: Path, picture: Path, play: Callable[[Page, Recorder], None], edits: list[str]) -> None:
    """Open a page, let play follow its scenario, and write what was seen; then print how fast it answers to edits."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for page in (pages := [browser.new_page(viewport=SIZE, color_scheme="light") for _ in range(2)]):
            page.goto(html.resolve().as_uri())
            page.wait_for_timeout(1500)
        page, fresh = pages
        recorder = Recorder(page)
        play(page, recorder)
        recorder.save(picture)
        print(f"an edit shows after {time_edits(fresh, edits):.0f} ms (median of {len(edits)})")
