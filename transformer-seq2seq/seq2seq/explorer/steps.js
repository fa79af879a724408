// Word by word: the slider, what is written at its step, and the likeliest words there.

const output = data.attentions.cross.from.map((word) => make("bdi", "", word));
let playing = null;

/** Goes to a step, from 1: the newest word is chosen, or, where all is written, none. */
function setStep(step) {
  $("step").value = step;
  $("step-name").textContent = `word ${step} of ${steps}`;
  output.forEach((word, index) => {
    word.classList.toggle("later", index >= step);
    word.classList.toggle("newest", index === step - 1);
  });
  showNext(data.next[step - 1], output[step - 1].textContent);
  const newest = attention.grows && step < steps ? { side: "from", index: step - 1 } : null;
  show({ step, chosen: newest, pointed: null });
  paintHeads();
}

function showNext(candidates, taken) {
  const lines = candidates.map(({ token, probability }, i) => {
    const line = make("li", i === 0 && token === taken ? "taken" : "");
    const percent = probability < 0.0005 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`;
    line.append(make("bdi", "", token), make("span", "figure", percent), make("span", "weight"));
    line.lastChild.style.setProperty("--weight", probability);
    return line;
  });
  $("next").replaceChildren(...lines);
}

/** Plays from here, or from the beginning where all is written. */
function play() {
  if (view.step === steps) setStep(1);
  $("play").textContent = "Pause";
  playing = setInterval(() => {
    setStep(Math.min(view.step + 1, steps));
    if (view.step === steps) pause();
  }, 1000);
}

function pause() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "Play";
}

$("step").max = steps;
for (const word of output) $("written").append(word, " ");
$("step").addEventListener("input", (event) => {
  pause();
  setStep(Number(event.target.value));
});
$("play").addEventListener("click", () => (playing ? pause() : play()));
start();
