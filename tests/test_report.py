"""report: one page, no outside resource, names escaped, the same bytes twice, honest words; checks have broken twins."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

import unpool as up
from unpool.errors import FileError
from unpool.evaluate import BASELINES, evaluate
from unpool.report import report

NAMES = ["E-Cad/P-Cad", "<script>alert(1)</script>", "$x^$", "a & b", 'say "hi"', *(f"g{i}" for i in range(7))]


def experiment(n_designs: int = 1) -> dict[str, Any]:
    cells = up.simulate.cell_types(250, 12, 4, rng=1)
    cells.var_names = NAMES
    reference, truth = cells[:100].copy(), cells[100:].copy()
    design = up.design.balanced(NAMES, 6, pools_per_gene=2, n_designs=n_designs, rng=0)
    pools = up.measure(truth, design, snr=5, rng=0)
    X = np.asarray(truth.X, dtype=np.float64)
    decoded = ad.AnnData(X + np.random.default_rng(0).normal(0, 1, X.shape), obs=truth.obs.copy())
    decoded.var_names = NAMES
    decoded.layers["sd"] = np.ones_like(X)
    decoded.obs["unpool_misfit"] = np.random.default_rng(0).normal(0, 1, 150)
    decoded.var["resolution"] = np.linspace(0.2, 0.9, 12)
    decoded.uns["unpool"] = {
        "method": "mixture",
        "noise_stage": "pool",
        "noise_covariance": 4 * np.eye(6),
        "parameters": {"members": 8, "noise_var": np.arange(20.0), "sd": True},
        "seed": "17",
        "status": "solved",
        "warnings": ["gene <b>x</b> is in no pool"],
        "versions": {"unpool": "0.1.0", "numpy": "2.0"},
        "design_digest": design.digest,
    }
    return {"decoded": decoded, "truth": truth, "pooled": pools, "reference": reference}


class Page(HTMLParser):
    """Text, tags and unclosed elements of a page."""

    VOID = ("meta", "br", "img", "path", "circle", "use", "image", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text += " ".join(data.split()) + " "


def written(path: Path, **given: Any) -> str:
    report(path, **given)
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    def check(text: str) -> None:
        for outside in ("http://", "https://", "//cdn", "@import", "<link", "<script", "src="):
            assert outside not in text
        assert all(target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)"', text))
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))

    text = written(tmp_path / "r.html", **experiment())
    check(text)
    for broken in ('<img src="https://a.b/c.png">', '<a href="page2.html">', "body { background: url(a.png) }"):
        with pytest.raises(AssertionError):
            check(text + broken)


def test_names_are_escaped_and_the_page_is_well_formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        page = Page(written(tmp_path / "r.html", **experiment()))
        assert not page.open
        assert "script" not in page.tags
        assert "b" not in page.tags
        assert all(" ".join(name.split()) in page.text for name in NAMES)
        assert "gene <b>x</b> is in no pool" in page.text

    check()
    module = import_module("unpool.report._page")
    monkeypatch.setattr(module, "Environment", lambda autoescape, **kw: _environment(autoescape=False, **kw))
    with pytest.raises(AssertionError):
        check()


def _environment(**options: Any) -> Any:
    from jinja2 import Environment

    return Environment(**options)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        first = written(tmp_path / "a.html", **experiment())
        assert first == written(tmp_path / "b.html", **experiment())

    check()
    figures = import_module("unpool.report._figures")
    drawn, number = figures._svg, iter(range(100))
    monkeypatch.setattr(figures, "_svg", lambda label, *rest: drawn(f"{label} {next(number)}", *rest))
    with pytest.raises(AssertionError):
        check()  # matplotlib salts the names inside a figure: by default with chance


def test_the_page_shows_the_scores_of_evaluate(tmp_path: Path) -> None:
    e = experiment()
    scores = evaluate(**e)
    text = Page(written(tmp_path / "r.html", **e)).text.replace("−", "-")

    def check(s: Any) -> None:
        rows = {"mixture": s.summary, **{BASELINES[k]: v for k, v in s.summary["baselines"].items()}}
        for label, of in rows.items():
            numbers = " ".join(f"{of[k]:.3f}" for k in ("pearson_mean", "pearson_median", "pearson_worst"))
            assert f"{label} {numbers}" in re.sub(r"\s+", " ", text)
        for gene, row in s.genes.iterrows():
            listed = f"{gene} {e['decoded'].var['resolution'][gene]:.2f} {row['pearson']:.3f} {row['spearman']:.3f}"
            assert listed in re.sub(r"\s+", " ", text)

    check(scores)
    e["decoded"].X[:, 4] = e["decoded"].X[::-1, 4]
    with pytest.raises(AssertionError):
        check(evaluate(**e))
    assert f"{scores.summary['removed_share']:.0%} of that baseline's error" in text
    assert written(tmp_path / "s.html", **experiment(), scores=scores) == written(tmp_path / "r.html", **experiment())


def test_what_was_done_is_told(tmp_path: Path) -> None:
    text = Page(written(tmp_path / "r.html", **experiment())).text
    for told in (
        "12 genes in 6 pools (pack ratio 0.5)",
        "in the pools (detector); standard deviation per pool 2; simulated at signal to noise 5",
        "members = 8, noise_var = 20 values, 0 to 19, sd = True",
        "Seed 17",
        "Status solved",
        "unpool 0.1.0, numpy 2.0",
    ):
        assert told in re.sub(r"\s+", " ", text)


def test_inferred_labels_are_counted(tmp_path: Path) -> None:
    e = experiment()
    assert "Inferred labels" not in Page(written(tmp_path / "r.html", **e)).text
    e["decoded"].obs["unpool_label"] = pd.Categorical(["B"] * 90 + ["T <1>"] * 60, categories=["T <1>", "B", "none"])
    text = re.sub(r"\s+", " ", Page(written(tmp_path / "r.html", **e)).text)
    assert "Inferred labels B 60%, T <1> 40%" in text


def test_what_was_chosen_and_learned_is_told(tmp_path: Path) -> None:
    e = experiment()

    def told() -> str:
        return re.sub(r"\s+", " ", Page(written(tmp_path / "r.html", **e)).text)

    assert "Adaptation" not in told()
    e["decoded"].uns["unpool"] |= {
        "extras": np.bool_(True),
        "nu": 30.0,
        "selection": {"held_out_pearson_with_extras": 0.81, "held_out_pearson_with_light_tails": 0.823},
        "adapted": np.bool_(False),
        "adapted_because": "adapting gains no more on the pooled cells than on cells of the reference",
        "gene_gain": np.array([0.8, 1.25]),
    }
    page = told()
    assert "cell types at other sizes and in pairs; Student tails with 30 degrees of freedom" in page
    assert "held-out reference cells (0.823 with light tails, 0.810 with extras)" in page
    assert "Adaptation no: adapting gains no more" in page
    assert "Gains of the genes 0.8 to 1.25" in page
    e["decoded"].uns["unpool"] |= {"extras": False, "nu": np.inf, "selection": {}, "adapted": True}
    assert "cell types as the reference shows them; no heavy tails Adaptation yes" in told()


def test_without_a_truth_the_page_makes_no_claim(tmp_path: Path) -> None:
    e = experiment()

    def check(**given: Any) -> None:
        text = Page(written(tmp_path / "r.html", **given)).text
        assert "makes no claim about accuracy" in text
        assert "Pearson" not in text
        assert "Misfit" in text or "misfit" in text

    check(decoded=e["decoded"], pooled=e["pooled"])
    check(decoded=e["decoded"])
    with pytest.raises(AssertionError):
        check(**e)


def test_the_page_says_when_nothing_was_gained(tmp_path: Path) -> None:
    e = experiment()

    def check() -> None:
        text = Page(written(tmp_path / "r.html", **e)).text
        assert "removed none of that baseline's error: here, decoding gained nothing" in text
        assert "Error removed none" in re.sub(r"\s+", " ", text)

    with pytest.raises(AssertionError):
        check()
    e["decoded"].X = np.random.default_rng(0).permuted(e["decoded"].X, axis=0)
    check()


def test_bare_data_and_several_designs_make_a_page(tmp_path: Path) -> None:
    e = experiment(3)
    bare = ad.AnnData(np.asarray(e["decoded"].X), obs=e["truth"].obs[[]].copy(), var=e["truth"].var[[]].copy())
    page = Page(written(tmp_path / "r.html", decoded=bare))
    assert not page.open
    page = Page(written(tmp_path / "r.html", decoded=bare, truth=e["truth"], pooled=e["pooled"]))
    assert "3 designs, each 12 genes in 6 pools" in page.text
    assert "Not compared" in page.text
    for key in ("design_0", "design_1", "design_2"):
        bare.varm[key] = e["pooled"].varm[key].T
    assert "3 designs, each 12 genes" in Page(written(tmp_path / "r.html", decoded=bare)).text


@pytest.mark.parametrize(("n_cells", "n_genes"), [(200, 900), (20_000, 5)])
def test_many_genes_or_cells_keep_the_page_small(tmp_path: Path, n_cells: int, n_genes: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.gamma(1.0, 5.0, (n_cells, n_genes))
    decoded, truth = ad.AnnData(X + rng.normal(0, 3, X.shape)), ad.AnnData(X)
    decoded.layers["sd"] = np.full_like(X, 3.0)
    scores = evaluate(decoded, truth)
    text = written(tmp_path / "r.html", decoded=decoded, truth=truth, scores=scores)

    def check(listed: int) -> None:
        assert len(text.encode()) < 500_000
        assert len(re.findall(r"<tr><th><span>", text)) == min(n_genes, listed)
        assert f"<span>{scores.summary['worst_gene']}</span>" in text

    check(300)
    with pytest.raises(AssertionError):
        check(4)


def test_a_failure_leaves_the_old_page(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    page.write_text("old")
    with pytest.raises(FileError):
        report(page / "below.html", **experiment())
    broken = experiment()
    broken["decoded"].X[3, 3] = np.nan
    with pytest.raises(ValueError, match="nan in cell"):
        report(page, **broken)
    assert page.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_figures_are_markup_and_their_labels_are_escaped() -> None:
    figures = import_module("unpool.report._figures")
    svg = figures._svg('a "b" <c>', (3, 2), lambda figure: figure.subplots().plot([0, 1]))
    assert isinstance(svg, Markup)
    assert 'aria-label="a &#34;b&#34; &lt;c&gt;"' in svg
