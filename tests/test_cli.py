"""The command line as a user types it."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import unpool as up
from unpool import io
from unpool.cli import main


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_whole_path(tmp_path):
    """Commands chain: each reads what the one before wrote."""
    t, r, d, p, x, s, h = (tmp_path / n for n in ("t.h5ad", "r.h5ad", "d.csv", "p.h5ad", "x.h5ad", "s.csv", "r.html"))
    run("simulate", "cell-types", "--cells", 400, "--genes", 20, "--types", 3, "--seed", 1, "-o", t)
    cells = io.read_h5ad(t)
    io.write_h5ad(cells[:200].copy(), r)
    io.write_h5ad(cells[200:].copy(), t)
    run("design", "balanced", "--genes", t, "--pools", 8, "--equalise", r, "-o", d)
    run("measure", t, "--design", d, "--snr", 5, "-o", p)
    run("decode", p, "--reference", r, "--noise-var", "recorded", "-o", x)
    result = run("evaluate", x, t, "--pooled", p, "--reference", r, "-o", s)
    table = pd.read_csv(s)
    assert table.columns[0] == "gene"
    assert len(table) == 20
    assert table["pearson"].mean() > table["pearson_linear"].mean() - 0.05
    assert f"{table['pearson'].mean():.3f}" in result.stdout
    run("report", x, "--truth", t, "--pooled", p, "--reference", r, "-o", h)
    assert h.read_text().startswith("<!")
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in (t, r, d, p, x, s, h))


def test_labels_groups_and_hidden_pools(files, tmp_path):
    reference, x, y, c = files / "reference.h5ad", tmp_path / "x.h5ad", tmp_path / "y.h5ad", tmp_path / "c.csv"
    options = ("--reference", reference, "--noise-var", "recorded")
    run(
        "decode",
        files / "pools.h5ad",
        *options,
        "--reference-label",
        "cell_type",
        "--reference-group",
        "cell_type",
        "-o",
        x,
    )
    labelled = io.read_h5ad(x)
    assert set(labelled.obs["unpool_label"]) <= {"type_0", "type_1", "type_2"}
    assert labelled.uns["unpool"]["intervals"]["source"].endswith("of whole groups")
    run("decode", files / "pools.h5ad", *options, "--no-crossfit", "-o", y)
    assert "expected_pearson" not in io.read_h5ad(y).var
    result = run("crossvalidate", files / "pools.h5ad", *options, "-o", c, "--json")
    assert json.loads(result.stdout)["n_pools"] == len(pd.read_csv(c)) == 6
    assert "Hidden pools" not in page(y, tmp_path)
    assert "Hidden pools" in page(y, tmp_path, "--crossvalidation", c)


def page(decoded, folder, *options):
    run("report", decoded, *options, "-o", folder / "r.html")
    return (folder / "r.html").read_text()


@pytest.mark.parametrize(
    ("option", "same", "other"),
    [
        ("--fast", {"fast": True}, {}),
        ("--adapt=no", {"adapt": False}, {"adapt": True}),
        ("--adapt=yes", {"adapt": True}, {"adapt": False}),
        ("--no-selection", {"selection": False}, {"adapt": False}),
        ("--calibrate=gain", {"calibrate": "gain"}, {}),
        ("--method=gaussian", {"method": "gaussian"}, {}),
        ("--reference-group=cell_type", {"reference_group": "cell_type"}, {"adapt": False, "selection": False}),
    ],
)
def test_hidden_pools_by_the_library_and_the_command_agree(files, tmp_path, small, option, same, other):
    run(
        "crossvalidate", files / "pools.h5ad", "--reference", files / "reference.h5ad", option, "-o", tmp_path / "c.csv"
    )
    written = pd.read_csv(tmp_path / "c.csv")["pearson"].to_numpy()
    assert np.allclose(written, up.crossvalidate(small.pools, small.reference, **same).pools["pearson"])
    assert not np.allclose(written, up.crossvalidate(small.pools, small.reference, **other).pools["pearson"])


def test_the_library_and_the_command_agree(files, tmp_path, small):
    run("decode", files / "pools.h5ad", "--reference", files / "reference.h5ad", "--noise-var", "recorded", "--seed", 3,
        "-o", tmp_path / "x.h5ad")  # fmt: skip
    mine = up.decode(small.pools, small.reference, noise_var="recorded", rng=3)
    assert np.array_equal(io.read_h5ad(tmp_path / "x.h5ad").X, mine.X)
    assert not np.array_equal(mine.X, up.decode(small.pools, small.reference, noise_var="recorded", rng=4).X)


def test_json_is_all_there_is_on_stdout(files, tmp_path):
    common = ("-o", tmp_path / "out", "--json")
    for args in [
        ("simulate", "low-rank", "--cells", 20, "--genes", 5, "--rank", 2),
        ("design", "bernoulli", "--genes", 10, "--pack-ratio", 0.5),
        ("measure", files / "truth.h5ad", "--design", files / "design.csv", "--noise-var", 2, "--noise", "expression"),
        ("decode", files / "pools.h5ad", "--method", "minimum_norm"),
    ]:
        result = run(*args, *common)
        assert json.loads(result.stdout)["output"] == str(tmp_path / "out")
        assert "wrote" in result.stderr
        quiet = run(*args, *common, "--quiet")
        assert quiet.stderr == ""
    run("decode", files / "pools.h5ad", "--reference", files / "reference.h5ad", "-o", tmp_path / "x.h5ad")
    result = run("evaluate", tmp_path / "x.h5ad", files / "truth.h5ad", "--pooled", files / "pools.h5ad", *common)
    summary = json.loads(result.stdout)
    assert {"pearson_mean", "worst_gene"} <= set(summary)


def test_same_seed_same_file(files, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(
            "measure",
            files / "truth.h5ad",
            "--design",
            files / "design.csv",
            "--snr",
            5,
            "--seed",
            seed,
            "-o",
            tmp_path / name,
        )
    a, b, c = (io.read_h5ad(tmp_path / n).X for n in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_every_command_explains_itself():
    def commands(command, path=()):
        yield path
        for name, sub in getattr(command, "commands", {}).items():
            yield from commands(sub, (*path, name))

    listed = list(commands(main))
    assert {p[0] for p in listed if p} >= {"simulate", "design", "measure", "decode", "evaluate", "report", "demo"}
    for path in listed:
        text = run(*path, "--help").stdout
        assert "unpool " + " ".join(path) in text.split("Usage:")[1].split("\n", 1)[1] or not path, (
            f"no example: {path}"
        )


def test_warnings_are_sentences(files, tmp_path, small):
    W = small.design.matrices[0].copy()
    W[0] = 0
    up.Design(W, genes=small.design.genes).to_csv(tmp_path / "d.csv")
    run("measure", files / "truth.h5ad", "--design", tmp_path / "d.csv", "--snr", 5, "-o", tmp_path / "p.h5ad")
    result = run("decode", tmp_path / "p.h5ad", "--reference", files / "reference.h5ad", "-o", tmp_path / "x.h5ad")
    assert "Warning: 1 of 12 genes are in no pool (gene_0)" in result.stderr
    assert np.isfinite(io.read_h5ad(tmp_path / "x.h5ad").X).all()


def test_an_unknown_method_lists_those_that_exist(files, tmp_path):
    result = run("decode", files / "pools.h5ad", "--method", "magic", "-o", tmp_path / "x", code=2)
    assert "'mixture'" in result.stderr
    assert "'minimum_norm'" in result.stderr


def test_names_from_a_text_file(tmp_path):
    (tmp_path / "genes.txt").write_text("E-Cad/P-Cad\n<script>\n\nCD3\n")
    run(
        "design",
        "balanced",
        "--genes",
        tmp_path / "genes.txt",
        "--pools",
        2,
        "--pools-per-gene",
        1,
        "-o",
        tmp_path / "d.csv",
    )
    assert up.Design.read_csv(tmp_path / "d.csv").genes == ("E-Cad/P-Cad", "<script>", "CD3")


@pytest.mark.parametrize("args", [("--version",), ("--help",)])
def test_front_page(args):
    assert "unpool" in run(*args).stdout


def test_benchmark_prints_a_table_and_json(files):
    common = ("benchmark", files / "reference.h5ad", "--repeats", 1)
    text = run(*common, "--pools", "4,6").stdout
    for word in ("unpool", "neighbours", "linear", "total", "modules", "per-gene Pearson"):
        assert word in text
    result = json.loads(run(*common, "--design", files / "design.csv", "--noise", "none", "--json", "-q").stdout)
    assert {row["pools"] for row in result["table"]} == {6}
    assert all(not row["failures"] for row in result["table"])
    assert "'eight'" in run(*common, "--pools", "eight", code=2).stderr
    assert "'cell_typ'" in run(*common, "--split", "group:cell_typ", code=2).stderr


def test_measured_pools_from_a_table(files, tmp_path, small):
    """Intensities as csv and the design's file: the same as pools that carry it."""
    pd.DataFrame(small.pools.X, index=small.pools.obs_names, columns=small.pools.var_names).to_csv(tmp_path / "m.csv")
    small.design.to_csv(tmp_path / "d.csv")
    reference, out = str(files / "reference.h5ad"), str(tmp_path / "x.h5ad")
    asked = ["decode", str(tmp_path / "m.csv"), "--reference", reference, "-o", out, "--no-crossfit"]
    told = CliRunner().invoke(main, [*asked, "--design", str(tmp_path / "d.csv")])
    assert told.exit_code == 0, told.stderr
    usual = up.decode(small.pools, small.reference, crossfit=False)
    np.testing.assert_allclose(io.read_h5ad(out).X, usual.X, rtol=1e-4, atol=1e-5 * usual.X.max())
    untold = CliRunner().invoke(main, asked)
    assert untold.exit_code == 2
    assert "--design design.csv" in untold.stderr
