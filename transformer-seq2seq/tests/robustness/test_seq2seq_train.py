# ------------------------------------------------------------------------------------------ train.py


def test_training_writes_what_it_promises_and_nothing_else(trained):
    written = files_in(trained) - {"checkpoint.pt", "checkpoint.before.pt"}
    folders = {"model": MODEL_FILES, "samples": SAMPLES, "tokens": TOKENS}
    assert written == {f"{folder}/{name}" for folder, names in folders.items() for name in names}
    assert {path.name for path in trained.parent.iterdir()} == {
        "pairs.tsv",
        "held_out.tsv",
        "out",
        "stdout.txt",
    }


def test_metrics_have_the_promised_keys(trained):
    lines = (trained / "samples" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    keys = {"epoch", "step", "seconds", "tokens", "train_loss", "held_out_loss", "learning_rate"}
    assert all(keys <= record.keys() for record in records)
    assert [record["step"] for record in records] == [50, 100, 150, 200]
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 2
    metrics = json.loads((trained / "samples" / "metrics.json").read_text(encoding="utf-8"))
    keys = "epochs steps seconds parameters train_loss held_out_loss train_exact_match held_out_exact_match "
    keys += "held_out_bleu held_out_chrf baseline_exact_match held_out_by_kind baseline_by_kind"
    assert set(keys.split()) <= metrics.keys()
    assert metrics["steps"] == 200 and metrics["train_exact_match"] == 1.0
    assert set(metrics["held_out_by_kind"]) == set(metrics["baseline_by_kind"]) == {"rewrite", "answer"}
    model, _ = pretrained.load(trained / "model", torch.device("cpu"))
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_outputs_and_the_curve_are_written(trained, held_out, ask):
    width, height = size_of(trained / "samples" / "loss_curve.png")
    assert 300 < width < 3000 and 200 < height < 3000
    header, *rows = (trained / "samples" / "outputs.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "kind\tsource\treference\toutput"
    rows = [row.split("\t") for row in rows]
    assert [row[:3] for row in rows] == [[kind, source, target] for source, target, kind in held_out]
    assert "".join(f"{row[3]}\n" for row in rows) == ask(stdin="".join(f"{row[1]}\n" for row in rows))
    table = (trained.parent / "stdout.txt").read_text(encoding="utf-8")
    assert "12 pairs to train on, 3 held out" in table and "Transformer" in table and "BLEU" in table


def test_an_interrupt_ends_in_one_line_and_a_usable_model(tmp_path, write_pairs, training, sizes, command):
    pairs = write_pairs(tmp_path / "pairs.tsv", training)
    flags = ["--pairs", pairs, "--output", tmp_path / "out", *sizes, "--max-minutes", 5]
    line = [sys.executable, FOLDER / "train.py", *flags]
    process = subprocess.Popen(
        list(map(str, line)),
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        seen = b""
        while not re.search(rb"[1-9]\d*step", seen):  # the progress bar moves
            seen += (piece := os.read(process.stderr.fileno(), 4096))
            assert piece, seen
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    last = rest.replace("\r", "\n").rstrip().splitlines()[-1]
    assert last.startswith("train.py: interrupted") and "--resume" in last and "Traceback" not in rest
    pretrained.load(tmp_path / "out" / "model", torch.device("cpu"))
    resumed = [*flags[:-2], "--max-steps", 1, "--resume"]
    done = command("train.py", *resumed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "out" / "samples") == SAMPLES


class At:
    """Stands for cli.Interrupt: asked for before the first step."""

    asked = True


def test_an_interrupt_before_the_first_step_ends_without_a_traceback(
    script, monkeypatch, tmp_path, write_pairs, training, sizes
):
    pairs = write_pairs(tmp_path / "pairs.tsv", training)
    monkeypatch.setattr("train.Interrupt", At)
    status, _, err = script("train", "--pairs", pairs, "--output", tmp_path / "out", *sizes)
    assert status == 130 and "interrupted" in err


def test_the_folder_runs_alone_in_another_place(tmp_path, command, trained):
    alone = tmp_path / "another place" / "copy"
    ignore = shutil.ignore_patterns("model", "tests", "__pycache__", "checkpoint*.pt", "samples", "tokens", ".*")
    shutil.copytree(FOLDER, alone, ignore=ignore)
    shutil.copytree(trained / "model", alone / "model")
    done = command("inference.py", "Good morning", cwd=tmp_path, folder=alone)
    assert (done.returncode, done.stdout) == (0, "Input : Good morning\nOutput: Good morning, cook\n")
    shutil.rmtree(alone / "model")
    flags = [
        "--max-steps",
        "2",
        "--d-model",
        "8",
        "--n-heads",
        "1",
        "--n-layers",
        "1",
        "--d-ff",
        "8",
        "--max-length",
        "32",
    ]
    (alone / "data" / "few.tsv").write_text("a b\tb a\nc\td\ne f\tf e\n", encoding="utf-8")
    done = command("train.py", "--pairs", alone / "data" / "few.tsv", *flags, cwd=tmp_path, folder=alone)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (alone / "model").iterdir()} == MODEL_FILES
    assert {path.name for path in (alone / "samples").iterdir()} == SAMPLES
    assert [path.name for path in tmp_path.iterdir()] == ["another place"]


def test_the_bundled_pairs_are_sound(capsys):
    from seq2seq.pairs import read_pairs

    training, held_out = (read_pairs(FOLDER / "data" / f"{name}.tsv") for name in ("train", "held_out"))
    assert capsys.readouterr().err == ""
    assert not {pair.source for pair in training} & {pair.source for pair in held_out}
    assert {pair.kind for pair in held_out} == {"answer", "rewrite", "rephrasing"}


