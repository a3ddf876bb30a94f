"""The report of a grid: it says what was printed, hides nothing, escapes all and needs nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from support.pages import content, results
from support.synthetic_grids import Made, make

from bench.figures import catalogue
from bench.report import build, page, render
from bench.report.columns import SHARED_MARK
from bench.report.findings.best_prior import answer_sentences, rival_sentences
from bench.report.findings.reliability import reliability_sentences
from bench.report.page import About, Page
from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.store.runs import Store

EVIL = "<script>alert('x')</script>](y)|$_&%#{\\"
VOID = {"meta", "img", "link", "br", "hr", "wbr"}


class Reader(HTMLParser):
    """Reads a page: its elements with their attributes, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []  # every element was closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += "" if self.open[-1:] in (["style"], ["script"]) else data


def png(path: Path, more: int = 0) -> Path:
    """Writes an image of 580 by 1 pixels, 5 inches wide, with that many bytes behind it."""
    Image.new("1", (580, 1)).save(path, dpi=(116, 116))
    path.write_bytes(path.read_bytes() + b"x" * more)
    return path


def store(uri: str = "http://me:secret@host:5000") -> Store:
    found = Store(uri, "digits")
    found.experiment = "7"  # no server is asked
    return found


def texts(some: Page, folder: Path) -> list[str]:
    """Returns what is written: HTML, markdown and LaTeX."""
    return [path.read_text() for path in render.write_pages(some, folder)]


def cell(some: Page, prior: str, title: str) -> str:
    titles = [column.title for column in some.columns]
    rows = [dict(zip(titles, row.cells, strict=True)) for row in some.rows]
    return next(str(row[title]) for row in rows if row["prior"].value == prior)


def compared(made: Made) -> tuple[pd.DataFrame, pd.DataFrame]:
    analysis = made.analysis()
    return analysis.summary, analysis.pairs


@pytest.mark.usefixtures("no_figures")
def test_a_page_says_what_was_printed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make(("gauss", "maf", "nsf"), (16,), images=200)
    made.frame["test/khat_high"] = 0.5
    with Path("printed").open("w") as file:
        console = Console(file=file, width=200)
        about = About("digits", "python -m bench.run", "Why?")
        build.build_report(console, results(made).analyse(0.1), about)
    printed, some = Path("printed").read_text(), content(made)
    assert len(some.answer) in (1, 2)
    assert some.findings
    for sentence in (*some.answer, *some.findings):
        assert sentence in printed
    for name in ("report.html", "report.md", "table.tex"):
        assert f"results/local/digits/{name}" in printed
    words = Reader(Path("results/local/digits/report.html").read_text()).words
    words = words.replace("\N{MINUS SIGN}", "-")
    for text in ("Why?", *some.answer, *some.findings, *some.notes, some.heading, "abc123"):
        assert text.replace("`", "") in words
    row = next(line for line in printed.splitlines() if line.startswith("  16   nsf"))
    for title in ("NLL", "difference", "ELBO", "rate", "distortion", "images/s", "k-hat>0.7"):
        assert cell(some, "nsf", title) in row


def test_a_report_validates_its_trials_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "write_figure", lambda *_: [])
    calls, real = [], frames.validate
    monkeypatch.setattr(frames, "validate", lambda frame: calls.append(len(frame)) or real(frame))
    made = results(make(("gauss", "maf", "nsf"), (16,)))
    build.build_report(Console(file=StringIO()), made.analyse(0.1), About("digits", "a command"))
    assert calls == [9]


def test_the_answer_is_said_before_the_figures_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = StringIO()

    def draw(*_: object, **__: object) -> list[Path]:
        file.write("drawn here\n")
        return [png(tmp_path / "nll_by_latent.png")]

    monkeypatch.setattr("bench.report.build.draw_all", draw)
    made = results(make(("gauss", "maf"), (16,)))
    about, console = About("digits", "a command"), Console(file=file, width=200)
    some, _ = build.build_report(console, made.analyse(0.1), about)
    before, after = file.getvalue().split("drawn here\n")
    for text in (some.heading, *some.answer, *some.findings):
        assert text in before
    for text in ("report.html", "summary.csv", "nll_by_latent.png"):
        assert text in after
        assert text not in before


def test_the_answer_is_the_best_prior_and_its_equals() -> None:
    made = make(("gauss", "maf", "nsf"), (16,))
    for seed in range(3):
        base = made.loglik[f"gauss-z16-s{seed}"]
        made.loglik[f"maf-z16-s{seed}"] = base + 4 + 0.1 * seed
        made.loglik[f"nsf-z16-s{seed}"] = base + 4.1 + 0.1 * (seed % 2)
    first, second = answer_sentences(*compared(made))
    assert first.startswith("At D = 16, nsf lowers the test NLL by 4.1 nats [")
    assert second == (
        "At D = 16, nsf is not distinguishable from maf with these seeds "
        "(Holm-adjusted over all pairs)."
    )
    for seed in range(3):
        made.loglik[f"nsf-z16-s{seed}"] -= 9
    first, second = answer_sentences(*compared(made))
    assert first.startswith("At D = 16, maf lowers")
    (row,) = compared(made)[1].query("prior == 'nsf' and against == 'maf'").to_dict("records")
    d, low, high = (f"{row[name]:.1f}" for name in ("difference", "low", "high"))
    told = "(Holm-adjusted over all pairs; indicative)."
    assert second == f"At D = 16, maf is better than nsf by {d} nats [{low}, {high}] {told}"
    made.frame.loc[made.frame["prior"] == "maf", "status"] = "diverged"
    (first,) = answer_sentences(*compared(made))
    assert first.startswith("At D = 16, nsf raises")  # nothing is better


def test_of_many_priors_the_best_is_named_and_who_is_not_told_from_it() -> None:
    priors = ("gauss", "maf", "nsf", "gmm", "vamp", "lars", "iaf")
    made = make(priors, (2, 16), seeds=5)
    gains = {"maf": 4.0, "nsf": 3.99, "gmm": 1.0, "vamp": 2.0, "lars": 0.5, "iaf": -1.0}
    noise = np.random.default_rng(0)
    for run, loglik in made.loglik.items():
        prior, _, seed = run.split("-")
        base = made.loglik[f"gauss-z16-{seed}"]
        gain = gains.get(prior, 0.0) + noise.normal(0, 0.05)
        if "-z16-" in run and prior != "gauss":
            loglik[:] = base + gain
    summary, pairs = compared(made)
    (said,) = (s for s in rival_sentences(summary, pairs) if s.startswith("At D = 16"))
    assert said == (
        "At D = 16, maf is better than 4 of the 5 other priors besides gauss by 1.9 to 5.0 nats, "
        "and not distinguishable from nsf with these seeds (Holm-adjusted over all pairs)."
    )
    for run in made.loglik:
        if run.startswith("nsf-z16"):
            made.loglik[run] -= 3.5
    (said,) = (s for s in rival_sentences(*compared(made)) if s.startswith("At D = 16"))
    assert "maf is better than all 5 other priors besides gauss by 1.9 to 5.0 nats (" in said
    assert "not distinguishable" not in said


@pytest.mark.parametrize("gain", [0.5, -0.5])
def test_rivals_are_named_with_one_that_is_better_than_the_reference_alone(gain: float) -> None:
    """Four priors are far behind one that is not resolved from the reference, or lost to it."""
    losses = {"gauss": 0.0, "maf": -gain, "nsf": 5.0, "gmm": 6.0, "vamp": 7.0, "lars": 8.0}
    made = make(tuple(losses), (16,), seeds=5)
    for run, loglik in made.loglik.items():
        prior, _, seed = run.split("-")
        noise = (prior == "maf") * np.random.default_rng(int(seed[1:])).normal(0, 1.5)
        loglik[:] = made.loglik[f"gauss-z16-{seed}"] - losses[prior] + noise
    (first,) = answer_sentences(*compared(made))
    assert first.startswith("At D = 16, the test NLL of maf minus that of gauss is ")
    assert "which is not resolved" in first
    assert rival_sentences(*compared(made)) == []


def test_rivals_are_not_named_with_one_that_another_is_better_than() -> None:
    made = make(("gauss", "maf", "nsf", "gmm"), (16,), seeds=5, diverged=(("nsf", 16, 0),))
    for run, loglik in made.loglik.items():
        prior, _, seed = run.split("-")
        gain = {"gauss": 0.0, "maf": 4.0, "nsf": 9.0, "gmm": 2.0}[prior] + 0.01 * int(seed[1:])
        loglik[:] = made.loglik[f"gauss-z16-{seed}"] + gain * (prior != "gauss")
    summary, pairs = compared(made)
    assert answer_sentences(summary, pairs)[0].startswith("At D = 16, maf lowers")
    (pair,) = pairs.query("prior == 'nsf' and against == 'maf'").to_dict("records")
    assert pair["verdict"] == "better"  # by the four seeds that it has
    assert rival_sentences(summary, pairs) == []


def test_a_prior_alone_and_one_that_was_lost_have_an_answer() -> None:
    (alone,) = answer_sentences(*compared(make(("maf",), (2,))))
    assert alone.startswith("At D = 2, maf has a test NLL of")
    lost = make(diverged=tuple(("maf", 2, seed) for seed in range(3)), latents=(2,))
    (said,) = answer_sentences(*compared(lost))
    assert "no seed is complete for both; 3 of 3 seeds diverged" in said
    assert rival_sentences(*compared(lost)) == []


def test_each_setting_has_its_answer() -> None:
    made = make(("gauss", "maf"), (2, 16), images=200)
    both = pd.concat([made.frame, made.frame.assign(net="gated")], ignore_index=True)
    said = answer_sentences(*compared(made._replace(frame=both)))
    assert len(said) == 4
    assert sum("net = gated" in sentence for sentence in said) == 2


def test_a_setting_without_a_value_is_one_too() -> None:
    made = make(("gauss", "maf", "nsf"), (16,))
    for seed in range(3):
        base = made.loglik[f"gauss-z16-s{seed}"]
        made.loglik[f"maf-z16-s{seed}"] = base + 4 + 0.1 * seed
        made.loglik[f"nsf-z16-s{seed}"] = base + 4.1 + 0.1 * (seed % 2)
    clips = [made.frame.assign(clip=clip) for clip in (1.0, None)]
    both = made._replace(frame=pd.concat(clips, ignore_index=True))
    assert len(answer_sentences(*compared(both))) == 4  # the best of each, and its equals
    assert [row.opens for row in content(both).rows] == [True, False, False] * 2


def test_what_was_lost_is_in_all_formats(tmp_path: Path) -> None:
    made = make(("gauss", "maf", "nsf", "gmm"), (2,), diverged=(("maf", 2, 1),))
    for prior, status in (("nsf", "failed"), ("gmm", "missing")):
        made.frame.loc[made.frame["prior"] == prior, ["status", "run_id"]] = status, ""
    some = content(made, store=store())
    assert cell(some, "maf", "seeds") == "2 of 3"
    assert cell(some, "maf", "failures") == "1 of 3 seeds diverged"
    assert cell(some, "maf", "verdict") == "too few seeds"
    assert cell(some, "nsf", "failures") == "3 of 3 seeds failed"
    assert cell(some, "gmm", "failures") == "3 of 3 seeds missing"
    for text in (html := texts(some, tmp_path)):
        assert "2 of 3" in text
        assert "0 of 3" in text
    for text in html[:2]:
        assert "3 of 3 seeds missing" in text
        assert "diverged: loss is nan" in text
    assert [run.link for run in some.runs].count("") == 6  # what never ran has no run


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    some = content(make(seeds=1, latents=(2,)))
    assert "[" not in cell(some, "maf", "NLL") + cell(some, "maf", "difference")
    for text in texts(some, tmp_path):
        assert "Fewer than three seeds: no interval over seeds." in text
    assert "too few seeds" in some.answer[0]
    assert not any("Fewer" in note for note in content(make(latents=(2,))).notes)


def test_verdicts_are_no_places() -> None:
    made = make(("gauss", "maf", "nsf"), (16,), seeds=5)
    for run, loglik in made.loglik.items():
        loglik += {"maf": 100.0, "nsf": -100.0}.get(run.split("-")[0], 0.0)
    verdicts = {prior: cell(content(made), prior, "verdict") for prior in ("gauss", "maf", "nsf")}
    assert verdicts == {"gauss": "reference", "maf": "better", "nsf": "worse"}


def test_a_small_p_is_not_written_as_zero() -> None:
    made = make(("gauss", "maf"), (16,), seeds=5)
    for run, loglik in made.loglik.items():
        loglik += 100.0 * run.startswith("maf")
    assert cell(content(made), "maf", "Holm p") == "<0.001"


def test_speeds_on_a_shared_device_are_left_out(tmp_path: Path) -> None:
    made = make(("gauss", "maf"), (2,))
    made.frame["timing"] = made.frame["prior"].map({"gauss": "alone", "maf": "shared"})
    some = content(made)
    for title in ("seconds", "images/s", "samples/s"):
        assert cell(some, "maf", title) == SHARED_MARK
        assert cell(some, "gauss", title) not in ("", SHARED_MARK)
    html, markdown, tex = texts(some, tmp_path)
    assert f"{SHARED_MARK} timed on a shared device and left out: maf at D = 2 (3)" in html
    assert f"{SHARED_MARK} timed on a shared device and left out: maf at D = 2 (3)" in markdown
    assert r"\dag{} timed on a shared device and left out: maf" in tex


def evil() -> Made:
    made = make(("gauss", "gmm[components=3]", EVIL), (2,), diverged=((EVIL, 2, 0),))
    made.frame["dataset"] = EVIL
    made.frame["reason"] = EVIL
    return made


def test_names_are_shown_as_they_are_and_do_nothing(tmp_path: Path) -> None:
    some = content(evil(), question=EVIL, command=f"python -m bench.run '{EVIL}'")
    html, markdown, tex = texts(some, tmp_path)
    read = Reader(html)
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert "gmm[components=3]" in html
    for text in (some.question, *some.answer, some.heading, f"diverged: {EVIL}"):
        assert text in read.words.replace("\N{MINUS SIGN}", "-")
    assert r"\<script\>alert('x')\</script\>\](y)\|\$\_\&%#{" in markdown
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\((?!http)", markdown)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    counts = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert set(counts[:5]) == {len(some.columns) + 1}
    assert set(counts[-10:]) == {len(some.titles) + 2}
    assert r"\textless{}script\textgreater{}" in tex
    assert "<" not in tex


@pytest.mark.parametrize("made", [evil(), make(seeds=1), make(("maf",), (2, 4))])
def test_the_table_is_latex(made: Made, tmp_path: Path) -> None:
    *_, tex = texts(content(made), tmp_path)
    plain = re.sub(r"\\[\\{}&%#_$]", "", tex)
    assert plain.count("{") == plain.count("}")
    assert [line for line in plain.splitlines() if "%" in line] == [
        r"% Needs \usepackage{booktabs}."
    ]
    assert plain.count("$") % 2 == 0
    (spec,) = re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", tex)
    rows = [line for line in tex.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 1 + len(content(made).rows)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(spec) - 1}
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in tex


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    drawn = [png(tmp_path / "nll_by_latent.png"), tmp_path / "nll_by_latent.svg"]
    drawn[1].write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    html, markdown, _ = texts(content(make(), drawn, store=store()), tmp_path)
    read = Reader(html)
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in read.tags}
    loaded = [known[name] for _, known in read.tags for name in ("src", "srcset") if name in known]
    assert len(loaded) == 1
    assert str(loaded[0]).startswith("data:image/svg+xml,")
    assert not re.search(r"url\(|@import|https?:", html.split("<style>")[1].split("</style>")[0])
    addresses = {known["href"] for tag, known in read.tags if tag == "a"}
    assert (
        "http://me:***@host:5000/#/experiments/7/runs/maf-z16-s2?workflowType=machine_learning"
        in addresses
    )
    assert "secret" not in html
    assert "](nll\\_by\\_latent.png)" in markdown


def test_passwords_stay_behind(tmp_path: Path) -> None:
    uri = "postgresql+psycopg2://me:secret@host/flowvae"
    command = f"python -m bench.run --tracking-uri {uri} --name a@b"
    some = content(make(), command=command, store=store(uri))
    assert dict(some.protocol)["command"] == command.replace("secret", "***")
    assert "mlflow ui --backend-store-uri" in some.browse
    assert not any("secret" in text for text in texts(some, tmp_path))


def test_a_figure_is_sharp_or_small_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MAX_SVG_CHARACTERS", 1000)
    monkeypatch.setattr(page, "MAX_PICTURE_CHARACTERS", 7000)
    sizes = {"nll_by_latent-net=mlp": (1, 900), "elbo_curves": (1, 9000), "pair_matrix": (9, 8000)}
    for stem, (height, size) in sizes.items():
        noise = np.random.default_rng(0).integers(0, 256, (height, 580, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{stem}.png", dpi=(116, 116))
        (tmp_path / f"{stem}.svg").write_bytes(b"x" * size)
    drawn = [tmp_path / f"{stem}.png" for stem in (*sizes, "not_there")]
    some = content(make(), drawn)
    kinds = [re.split("[;,]", picture.uri)[0] for picture in some.pictures]
    assert kinds == ["data:image/svg+xml", "data:image/webp", ""]
    assert {picture.width for picture in some.pictures} == {5 * page.PIXELS_PER_INCH}
    assert some.pictures[0].title.endswith("(net=mlp)")
    assert "pair_matrix.png, not included here" in texts(some, tmp_path)[0]


def test_a_file_store_tells_how_to_open_it_and_where_each_run_is() -> None:
    some = content(make(), store=store("sqlite:////elsewhere/mlflow.db"))
    there = "http://127.0.0.1:5000/#/experiments/7"
    assert some.browse.endswith(f", then {there}/runs?workflowType=machine_learning")
    assert some.runs[0].link == f"{there}/runs/gauss-z2-s0?workflowType=machine_learning"
    assert content(make()).browse == ""


def told(frame: pd.DataFrame) -> str:
    return " ".join(reliability_sentences(Analysis(frame)))


def test_a_warning_of_heavy_tails_is_said_where_no_exact_value_is_known() -> None:
    frame = make().frame
    frame["test/khat_high"] = np.where(frame["prior"] == "maf", 0.6, 0.2)
    frame.loc[frame["latent"] == 2, "test/khat_high"] += 0.3
    assert "up to 90% of the test images (maf, D = 2)" in told(frame)
    small = frame["latent"] == 2
    frame.loc[small, "test/nll_exact"] = frame["test/nll"][small] - 0.01
    frame["test/nll_exact_error"] = 0.002
    worst = frame.index[small & (frame["prior"] == "maf")][1]
    frame.loc[worst, "test/nll_exact"] += 0.05
    said = told(frame)
    assert "importance sampling, fitted proposal, K = 1000, up to 60%" in said
    assert "(maf, D = 16)" in said
    assert "numerical integral" not in said  # it is known where it can be
    assert "is -0.0400 nats, of maf at D = 2 with seed 1; of 6 in all" in said
    assert "at most 0.002 nats per image" in said
    assert "far above" not in told(frame[small])


def test_the_estimators_part_of_the_differences_is_said_and_shown() -> None:
    made = make(("gauss", "maf", "nsf"), (16,))
    assert "adds" not in told(made.frame)
    for prior, bias in (("gauss", 0.01), ("maf", 0.002), ("nsf", 0.05)):
        mine = made.frame["prior"] == prior
        made.frame.loc[mine, ["test/nll_bias", "test/nll_se"]] = bias, 0.003
    assert (
        "a Monte Carlo standard error of at most 0.0024 nats to the differences, which their "
        "intervals hold already, and a bias of about +0.048 nats at most (nsf minus maf, D = 16)"
    ) in told(made.frame)
    some = content(made)
    assert cell(some, "nsf", "bias") == "+0.0400"
    assert cell(some, "nsf", "MC error") == "0.0024"
