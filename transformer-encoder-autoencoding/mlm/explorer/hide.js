// One word hidden, and what the model takes it for. The guesses were computed beforehand.

const chips = [];
let hidden = null;

function buildChips() {
  data.words.forEach((word, index) => {
    if (!data.guesses[index]) return $("words").append(make("span", "end", word));
    const chip = make("button", "chip", "", { type: "button" });
    chip.append(make("bdi", "", word));
    chip.addEventListener("click", () => hide(hidden === index ? null : index));
    chips[index] = chip;
    $("words").append(chip);
  });
  const all = chips.filter(Boolean);
  rove(all);
  reachable(all, all[0]);
}

function hide(index) {
  hidden = index;
  chips.forEach((chip, i) => {
    chip.setAttribute("aria-pressed", i === index);
    chip.firstChild.textContent = i === index ? "[MASK]" : data.words[i];
    chip.setAttribute("aria-label", i === index ? `${data.words[i]}, hidden` : `hide ${data.words[i]}`);
  });
  showGuesses();
}

function showGuesses() {
  const title = $("guesses-title");
  $("guesses").replaceChildren();
  if (hidden === null) return title.replaceChildren("Nothing is hidden");
  const word = data.words[hidden];
  const { best, itself } = data.guesses[hidden];
  if (itself === null) title.replaceChildren("For ", make("bdi", "", word), " the model guesses");
  else title.replaceChildren("For ", make("bdi", "", word), ", hidden, the model guesses");
  for (const { token, probability, right } of best) showGuess(token, probability, right);
  if (itself !== null && !best.some(({ right }) => right)) showGuess(word, itself, true, true);
}

/** A guess with its probability; the hidden word itself is marked, and stands apart if it is not among the best. */
function showGuess(token, probability, isWord, apart = false) {
  const line = make("li", `${isWord ? "right" : ""} ${apart ? "apart" : ""}`);
  const percent = probability < 0.0005 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`;
  line.append(make("bdi", "", token), make("span", "figure", percent), make("span", "weight"));
  line.lastChild.style.setProperty("--weight", probability);
  $("guesses").append(line);
}

buildChips();
hide(masked < 0 ? null : masked);
