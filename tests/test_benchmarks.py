"""The benchmarks' own machinery, the page that they write, and the notebook of the docs, which runs and prints what it shows."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import os
import re
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import unpool as up

ROOT = Path(__file__).parents[1]
PEERS = {"cvxpy", "spams", "clarabel", "scs"}


@pytest.fixture
def benchmarks(monkeypatch):
    """Import a module of the benchmarks' folder by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


# --- peers stay outside the package


def imported(source: str) -> set[str]:
    """Top-level packages that a source imports anywhere, by statement or by name in a call."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return {name.split(".")[0] for name in names}


def test_no_peer_in_the_package():
    sources = list((ROOT / "src").rglob("*.py"))
    assert len(sources) > 30
    for path in sources:
        assert not imported(path.read_text(encoding="utf-8")) & PEERS, path


@pytest.mark.parametrize(
    "twin",
    [
        "import cvxpy as cp",
        "def f():\n    from spams import lasso",
        "import numpy, scs.linear",
        "from importlib import import_module\nx = import_module('clarabel')",
        "x = __import__('cvxpy')",
    ],
)
def test_the_scan_sees_a_peer(twin):
    assert imported(twin) & PEERS


# --- harness


def test_peers_answer_or_fail_visibly(benchmarks):
    peer = benchmarks("_harness").peer
    good = peer(pow, 2, 3, repeats=3)
    assert (good.value, good.runs, good.failed) == (8, 3, False)
    assert good.seconds >= 0
    wrong = peer(math.sqrt, -1)
    assert wrong.failed
    assert wrong.text.startswith("ValueError")
    assert wrong.times(1.0) == "failed"
    missing = peer(pow, 2, 3, needs=["no_such_package"])
    assert missing.text.startswith("ModuleNotFoundError")
    assert peer(os._exit, 3).text == "crashed, exit code 3"


def test_a_slow_peer_is_ended(benchmarks):
    harness = benchmarks("_harness")
    slow = harness.peer(time.sleep, 600, timeout=2.0)
    assert slow.text == "no answer after 2 s"
    assert slow.times(1.0) == "failed"
    assert harness.Outcome(error="no answer after 120 s").times(0.01) == "> 12,000 x"


def test_medians_and_units(benchmarks):
    harness = benchmarks("_harness")
    calls: list[str] = []
    assert len(harness.medians(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3)) == 2
    assert calls == ["a", "b"] * 3  # in turns
    svds, seconds = harness.in_svds(lambda: None, repeats=3)
    assert 0 <= svds < 1
    assert 0 <= seconds
    assert [harness.duration(s) for s in (2e-6, 0.0123, 41.04, float("nan"))] == ["2 µs", "12.3 ms", "41 s", ""]


def test_machine_names_what_matters(benchmarks):
    about = benchmarks("_harness").machine()
    assert {"processor", "cores", "numba threads", "blas", "versions"} <= set(about)
    assert {"numpy", "scipy", "unpool"} <= set(about["versions"])
    json.dumps(about)


# --- page

SMALL = {
    "title": "A small one",
    "machine": {"processor": "abacus", "cores": 2, "versions": {"numpy": "2"}, "settings": {}},
    "columns": ["method", "ratio", "failed"],
    "rows": [["ours", 1.0, False], ["a | peer", 12345.6, True], {"method": "another", "ratio": 0.01234}],
    "notes": ["one note"],
}


def test_the_page_renders(benchmarks, tmp_path):
    several = {"title": "Several", "machine": "abacus", "tables": [{k: SMALL[k] for k in ("title", "columns", "rows")}]}
    for name, result in {"b_small": SMALL, "a_several": several, "c_other": {"anything": 1}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    text = benchmarks("page").page(tmp_path.glob("*.json"))
    assert text.index("## Several") < text.index("## A small one") < text.index("## c_other")
    for line in (
        "| method | ratio | failed |",
        "| ours | 1 | no |",
        "| a \\| peer | 12,346 | yes |",
        "| another | 0.0123 |  |",
        "- one note",
        "<sub>processor: abacus; cores: 2; versions: numpy 2</sub>",
        "`python benchmarks/b_small.py`",
    ):
        assert line in text
    assert "### A small one" in text
    assert "busy" not in text


def test_the_page_says_when_the_machine_was_busy(benchmarks):
    busy = SMALL | {"machine": SMALL["machine"] | {"load at start": 3.2}}
    assert "load at start: 3.2. Measured on a busy machine" in benchmarks("page").section("b_small", busy)


def test_a_result_without_tables_keeps_its_place(benchmarks):
    text = benchmarks("page").section("other", {"results": [1]})
    assert "Not made for this page: [results/other.json](results/other.json)" in text


def test_a_row_of_the_wrong_length_is_refused(benchmarks):
    with pytest.raises(ValueError, match="a row of 2 values in a table of 3 columns"):
        benchmarks("page").markdown(SMALL | {"rows": [["ours", 1.0]]})


def test_the_page_is_the_results(benchmarks):
    page = benchmarks("page").page((ROOT / "benchmarks" / "results").glob("*.json"))
    assert page == (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"), "run benchmarks/page.py"


def test_every_result_is_strict_json_and_has_its_script():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = re.search(r"^BENCHMARKS := (.*)$", make, re.M)[1].split()
    for name in scripts:
        assert (ROOT / "benchmarks" / f"{name}.py").exists()
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
        assert path.stem in scripts


# --- what the decoder's benchmarks compute


def test_a_verdict_bites(benchmarks):
    verdict = benchmarks("_harness").verdict
    assert verdict(0.9, least=0.9) == verdict(0.9, most=0.9) == verdict(0.5, least=0, most=1) == "met"
    assert verdict(0.87, least=0.9) == "missed by 0.03"
    assert verdict(3.25, most=2.5) == "missed by 0.75"
    assert verdict(float("nan"), least=0.9) == "not measured"


@pytest.fixture
def experiment(benchmarks):
    """400 cells known, 200 measured in 6 pools."""
    cells = up.simulate.cell_types(600, 12, 3, rng=0)
    cells.X = np.asarray(cells.X, dtype=np.float64)
    design = up.design.balanced(12, 6, pools_per_gene=2, rng=0)
    order = np.arange(600)
    make = benchmarks("_cells").experiment
    return make(cells, design, order[:400], order[400:], np.random.default_rng(0)), design.matrices[0], cells


def test_an_experiment_is_what_it_says(experiment):
    e, P, cells = experiment
    norm = np.linalg.norm(cells.X[:400], axis=0)
    np.testing.assert_allclose(e.reference.X, cells.X[:400] / norm)
    np.testing.assert_allclose(e.truth, cells.X[400:] / norm)
    noise, clean = np.asarray(e.pools.X) - e.truth @ P, e.truth @ P
    np.testing.assert_allclose(np.sqrt(np.diag(e.R)), clean.std(axis=0) / 5, rtol=1e-5)
    np.testing.assert_allclose(noise.std(axis=0), clean.std(axis=0) / 5, rtol=0.2)
    assert not np.allclose(noise.std(axis=0), (cells.X[:400] / norm @ P).std(axis=0) / 4, rtol=0.2)


def test_corrupted_pools_keep_their_noise_in_their_units(benchmarks, experiment):
    e = experiment[0]
    other = benchmarks("gains").corrupted(e, np.random.default_rng(0))
    clean, D = np.asarray(e.pools.X, dtype=np.float64), np.asarray(other.pools.X)
    gain, offset = np.transpose([np.polyfit(x, y, 1) for x, y in zip(clean.T, D.T, strict=True)])
    np.testing.assert_allclose(D, clean * gain + offset)
    np.testing.assert_allclose(np.diag(other.R), gain**2 * np.diag(e.R))
    np.testing.assert_allclose(offset, 0.1 * gain * np.ptp(clean, axis=0))
    assert 0.3 <= gain.min() < 0.8 < 1.2 < gain.max() <= 3.0


def test_the_loss_of_gains_bites(benchmarks):
    found = np.full((3, 3, 2, 4), np.nan)
    found[:, :, :, :2] = 0.9
    found[:, 1, 1, 0] = (0.9, 0.88, 0.81)
    [accuracy, bars, covered] = benchmarks("gains").tables(found)
    assert [row[-1] for row in bars["rows"]] == ["met", "missed by 0.0167"]
    assert bars["rows"][1][1:3] == ["+0.0367", "+0.0900"]
    assert len(accuracy["rows"]) == 3
    assert covered["rows"] == []


def test_a_fall_and_a_baseline_ahead_are_seen(benchmarks):
    bars = benchmarks("references").bars
    sizes = [20, 50, 100]
    found = np.zeros((2, 3, 4, 2))
    found[:, :, 0, 0] = [[0.7, 0.8, 0.9], [0.7, 0.8, 0.9]]
    assert [row[-1] for row in bars(sizes, found)["rows"]] == ["met", "met", "", ""]
    found[:, 2, 0, 0] = (0.81, 0.77)  # one repeat rises, the mean falls by 0.01
    found[:, 0, 2, 0] = 0.75  # a baseline ahead by 0.05
    rows = bars(sizes, found)["rows"]
    assert [row[2:4] for row in rows] == [
        ["+0.0100", "50 to 100"],
        ["+0.0500", "20"],
        ["+0.0300", "50 to 100"],
        ["+0.0500", "20"],
    ]
    assert [row[-1] for row in rows[:2]] == ["missed by 0.005", "missed by 0.04"]


def test_nested_references_share_their_test_cells(benchmarks, experiment):
    e, P, _ = experiment
    references = benchmarks("references")
    found = references.scores(e, up.Design(P, genes=list(e.reference.var_names)), [50, 400], 0, 1)
    assert found.shape == (2, 4, 2)
    np.testing.assert_allclose(found[0, 3], found[1, 3], atol=0.02)  # the cell's total hardly needs a reference
    assert found[1, 0, 0] > found[:, 1:, 0].max()


def of_decoder(**mean: float) -> dict:
    """Result of the decoder's benchmark with these means, one record a method."""
    rows = [
        {"method": m.replace("_", " "), "mean": x, "worst": x - 0.03, "repeats": 9, "failures": 0}
        for m, x in mean.items()
    ]
    return {"title": "pool", "parameters": {"repeats": 9}, "table": rows, "repeats": rows}


def test_the_decoders_bars_bite(benchmarks):
    bars = benchmarks("decoder").bars
    for ours, fast, verdicts in ((0.96, 0.93, {"met"}), (0.94, 0.89, {"missed"})):
        unknown = ours - (0.005 if ours > 0.95 else 0.02)
        found = of_decoder(unpool=ours, modules=0.9, spams=0.9)["table"]
        rows = {r["method"]: r for r in found} | {
            m: found[0] | {"mean": x} for m, x in (("unpool, noise unknown", unknown), ("unpool, fast", fast))
        }
        asked = bars("pool", rows)
        assert {row[-1].split()[0] for row in asked} == verdicts
        assert len(asked) == 7
    assert [row[0] for row in bars("tissue", {"unpool": found[0]})] == ["mean r"]


def test_results_of_two_runs_are_merged(benchmarks):
    merged = benchmarks("decoder").merged
    old, new = of_decoder(unpool=0.9, spams=0.8), of_decoder(unpool=0.95, linear=0.5)
    for part in ("table", "repeats"):
        assert {r["method"]: r["mean"] for r in merged(old, new)[part]} == {"unpool": 0.95, "linear": 0.5, "spams": 0.8}
    assert merged(old, new | {"parameters": {"repeats": 3}})["table"] == new["table"]  # not the same: forgotten
    assert merged(old, {"title": "pool", "skipped": "no data"})["table"] == old["table"]


def test_the_decoders_table_shows_what_was_measured(benchmarks):
    settings = {"pool": of_decoder(unpool=0.96, total=0.4), "10": {"title": "ten", "skipped": "no data"}}
    [table, bars] = benchmarks("decoder").tables(settings)
    assert table["columns"] == ["", "unpool", "cell's total"]
    assert table["rows"] == [["pool", "0.960 / 0.930", "0.400 / 0.370"], ["ten", "", ""]]
    assert table["notes"] == ["ten: skipped, no data"]
    assert len(bars["rows"]) == 2


def test_turns_alternate_and_a_failure_keeps_its_row(benchmarks):
    speed = benchmarks("speed")
    calls: list[str] = []
    found = speed.in_turns(
        {"fast": lambda turn: calls.append(f"a{turn}"), "spams": lambda turn: calls.append(f"b{turn}"), "neighbours": lambda turn: 1 / turn},
        2,
    )  # fmt: skip
    assert calls == ["a0", "b0", "a1", "b1"]
    assert found["neighbours"] == "ZeroDivisionError: division by zero"
    rows = speed.paces(found, dict.fromkeys(found, 10))
    assert [row[-1] for row in rows] == ["", "", "failed: ZeroDivisionError: division by zero"]
    pairs = {"spams": [speed.Taken(10.0, 20.0)] * 3, "fast": [speed.Taken(x, 1.0) for x in (1.0, 2.0, 100.0)]}
    assert speed.ratio(pairs, "spams", "fast", least=10)[1:] == ["5.00", "20.00", "at least 10", "missed by 5"]
    assert speed.ratio(pairs | {"spams": "no such module"}, "spams", "fast", least=10)[-1] == "failed: no such module"


@pytest.mark.parametrize("weighty", [False, True])
def test_products_are_not_inflated(benchmarks, monkeypatch, weighty):
    speed = benchmarks("speed")
    cells, pools, genes = speed.TILE, speed.POOLS, speed.GENES
    shares = np.zeros((4, 3), np.float32)  # cells x components: one carries all, one a little in half of the cells
    shares[:, 0], shares[:2, 1] = 1.0, speed.WEAK / 100
    counts = [speed.carrying(shares)]
    assert [list(n) for n in counts[0]] == [[cells, 0, 0], [0, cells // 2, 0]]
    done: list[int] = []
    dot = np.dot
    monkeypatch.setattr(np, "dot", lambda a, b, out: (done.append(a.size * b.shape[1]), dot(a, b, out=out)))
    speed.products(counts, 2 * cells, 1, weighty=weighty)
    turned = 1.5 if weighty else 3
    assert sum(done) == 2 * (turned * cells * pools**2 + 1.5 * cells * pools * genes)


# --- what the solvers' benchmark computes


def test_the_printed_violation_bites(benchmarks):
    from scipy.optimize import nnls

    kkt = benchmarks("_nnls").kkt_violation
    rng = np.random.default_rng(0)
    A, B = rng.gamma(0.5, size=(8, 4)), rng.standard_normal((30, 8)) + 0.5
    X = np.array([nnls(A, b)[0] for b in B])
    assert 0 < (X == 0).mean() < 1
    assert kkt(A, B, X) < 1e-12
    assert kkt(A, B, X + 1e-3) > 1e-5
    assert kkt(A, B, np.where(X > 0, X, -1e-3)) > 1e-5
    assert kkt(A, B, np.zeros_like(X)) > 1e-2


def test_the_printed_score_is_the_correlation(benchmarks):
    score = benchmarks("solvers").pearson
    M = np.random.default_rng(0).random((50, 3))
    assert score(M, 2 * M + 1) == "1.0000"
    assert float(score(M, M[:, ::-1])) < 0.7


# --- the notebook


def run_cells(notebook: dict) -> list[str]:
    """What each code cell prints, all run in one namespace."""
    import matplotlib.pyplot as plt

    names: dict = {"__name__": "__main__"}
    printed = []
    try:
        for k, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("".join(cell["source"]), f"code cell {k}", "exec"), names)
            printed.append(out.getvalue())
    finally:
        plt.close("all")
    return printed


def stored(notebook: dict) -> list[str]:
    """What each code cell printed when its outputs were stored."""
    cells = (c["outputs"] for c in notebook["cells"] if c["cell_type"] == "code")
    return ["".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream") for outputs in cells]


def same(text: str, other: str) -> bool:
    """Equal words, and numbers but for what another BLAS or scikit-learn, or a better solver, may change."""
    number = r"-?\d+(?:\.\d+)?"
    words = [re.sub(number, "#", re.sub(r"gene_\d+", "gene", t)).split() for t in (text, other)]
    values = [np.array(re.findall(number, re.sub(r"gene_\d+", "gene", t)), dtype=float) for t in (text, other)]
    return words[0] == words[1] and bool(np.allclose(*values, rtol=0.1, atol=0.05))


@pytest.fixture
def notebook():
    return json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))


def test_the_notebook_runs_and_prints_what_it_shows(notebook):
    for k, (fresh, shown) in enumerate(zip(run_cells(notebook), stored(notebook), strict=True)):
        assert same(fresh, shown), f"code cell {k} prints\n{fresh}\nbut shows\n{shown}\nrun `make notebook`"


def test_a_stale_output_is_seen(notebook):
    [score] = [text for text in stored(notebook) if re.search(r"nearest neighbours +0\.", text) and "0.99" not in text]
    assert same(score, score)
    assert not same(score, score.replace("nearest neighbours", "nearest cells"))
    assert not same(score, re.sub(r"(mixture +)0\.\d+", r"\g<1>0.95", score))
    with pytest.raises(ZeroDivisionError):
        run_cells({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]})


def test_the_notebook_is_complete_and_portable(notebook):
    outputs = [o for c in notebook["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    text = json.dumps([o.get("text") for o in outputs] + [c["source"] for c in notebook["cells"]])
    assert not re.search(r"(?:^|[\s\"'=:])/(?:home|root|tmp|work|Users|var)\b|[A-Z]:\\\\", text)
