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


def test_results_by_settings_become_tables(benchmarks):
    settings = {"a": {"title": "First", "table": [{"method": "ours", "mean": 0.9}]}, "b": {"skipped": "no data"}}
    text = benchmarks("page").section("decoder", {"machine": {"cpu": "abacus"}, "settings": settings})
    for line in ("## decoder", "### First", "| method | mean |", "| ours | 0.9 |", "### b", "- skipped: no data"):
        assert line in text.splitlines()
    text = benchmarks("page").section("other", {"results": {"a": {"mean": {"coverage": 0.91}}}})
    assert "| coverage |\n| --- |\n| 0.91 |" in text


def test_a_row_of_the_wrong_length_is_refused(benchmarks):
    with pytest.raises(ValueError, match="a row of 2 values in a table of 3 columns"):
        benchmarks("page").markdown(SMALL | {"rows": [["ours", 1.0]]})


def test_the_page_is_the_results(benchmarks):
    page = benchmarks("page").page((ROOT / "benchmarks" / "results").glob("*.json"))
    assert page == (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"), "run benchmarks/page.py"


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
    [score] = [text for text in stored(notebook) if "nearest neighbours" in text and "0.99" not in text]
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
