"""Wrong input: exit 2, one sentence that names the item and the remedy, the old output untouched, no stray file."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse

import unpool as up
from unpool import io
from unpool.cli import main
from unpool.errors import InputError

OLD = b"what stood here before"


def decode(files, out):
    return ["decode", files / "pools.h5ad", "--reference", files / "reference.h5ad", "-o", out]


def measure(files, out):
    return ["measure", files / "truth.h5ad", "--design", files / "design.csv", "--snr", "5", "-o", out]


def design(files, out):
    return ["design", "balanced", "--genes", "12", "--pools", "6", "-o", out]


def change(name, edit):
    """A mess that edits one h5ad file; X is dense float32 in all of them."""

    def mess(files):
        adata = io.read_h5ad(files / f"{name}.h5ad")
        edited = edit(adata)
        (edited if edited is not None else adata).write_h5ad(files / f"{name}.h5ad")

    return mess


def put(value, row=7, column=2):
    def edit(adata):
        adata.X[row, column] = value

    return edit


def set_x(f):
    def edit(adata):
        adata.X = f(adata.X)

    return edit


def renamed(f):
    def edit(adata):
        adata.var_names = [f(n) for n in adata.var_names]

    return edit


def text(name, content):
    return lambda files: (files / name).write_bytes(content)


def cut(name):
    def mess(files):
        data = (files / name).read_bytes()
        (files / name).write_bytes(data[: len(data) // 2])

    return mess


def design_entry(value, gene="gene_1", pool="pool_0"):
    def mess(files):
        frame = pd.read_csv(files / "design.csv", index_col=0, dtype=str)
        frame.loc[gene, pool] = value
        frame.to_csv(files / "design.csv")

    return mess


def design_frame(edit):
    def mess(files):
        edit(pd.read_csv(files / "design.csv", index_col=0)).to_csv(files / "design.csv")

    return mess


def joined_carelessly(files):
    p = io.read_h5ad(files / "pools.h5ad")
    io.write_h5ad(ad.concat([p[:100].copy(), p[100:].copy()]), files / "pools.h5ad")


def text_column(files):
    frame = io.read_h5ad(files / "reference.h5ad").to_df().astype(object)
    frame.loc[frame.index[0], "gene_4"] = "high"
    frame.to_csv(files / "reference.csv")


def nothing(files):
    pass


def swap(args, old, new):
    return [new(a) if callable(new) and a == old else (new if a == old else a) for a in args]


BAD = {
    # what: (command, mess, edit of the arguments, what the sentence must name)
    "NaN in the pools": (decode, change("pools", put(np.nan)), None, ["pool_2", "cell_307", "nan"]),
    "infinity in the pools": (decode, change("pools", put(np.inf)), None, ["pool_2", "cell_307", "inf"]),
    "NaN in the reference": (decode, change("reference", put(np.nan)), None, ["gene_2", "cell_7", "nan"]),
    "negative reference": (decode, change("reference", put(-3)), None, ["gene_2", "cell_7", "-3", "linear"]),
    "log-scale reference": (decode, change("reference", set_x(np.log1p)), None, ["log", "expm1"]),
    "log-scale truth": (measure, change("truth", set_x(np.log1p)), None, ["log", "expm1"]),
    "logged by scanpy": (decode, change("pools", lambda a: a.uns.update(log1p={"x": 1})), None, ["log1p"]),
    "negative truth": (measure, change("truth", put(-1)), None, ["gene_2", "cell_307", "-1"]),
    "wrong genes": (decode, change("reference", renamed(str.upper)), None, ["'gene_0'", "'GENE_0'", "name"]),
    "missing gene": (
        decode,
        change("reference", lambda a: a[:, a.var_names != "gene_5"].copy()),
        None,
        ["'gene_5'", "reference"],
    ),
    "duplicate genes": (
        decode,
        change("reference", renamed(lambda n: "gene_1" if n == "gene_0" else n)),
        None,
        ["'gene_1'", "2 times"],
    ),
    "empty reference": (decode, change("reference", lambda a: a[:0].copy()), None, ["reference", "no cells"]),
    "reference without genes": (
        decode,
        change("reference", lambda a: a[:, :0].copy()),
        None,
        ["reference", "no genes"],
    ),
    "no cells": (decode, change("pools", lambda a: a[:0].copy()), None, ["no cells"]),
    "no pools": (decode, change("pools", lambda a: a[:, :0].copy()), None, ["no pools"]),
    "truncated h5ad": (decode, cut("pools.h5ad"), None, ["pools.h5ad", "damaged"]),
    "a text file called h5ad": (decode, text("pools.h5ad", b"cell,pool\n1,2\n"), None, ["pools.h5ad", "not an h5ad"]),
    "an empty file": (decode, text("pools.h5ad", b""), None, ["pools.h5ad", "empty"]),
    "missing file": (decode, lambda f: (f / "reference.h5ad").unlink(), None, ["reference.h5ad", "does not exist"]),
    "a folder as input": (
        decode,
        lambda f: ((f / "pools.h5ad").unlink(), (f / "pools.h5ad").mkdir()),
        None,
        ["pools.h5ad", "folder"],
    ),
    "some other HDF5 file": (decode, lambda f: h5py.File(f / "pools.h5ad", "w").close(), None, ["pools.h5ad"]),
    "the truth given as pools": (
        decode,
        lambda f: (f / "pools.h5ad").write_bytes((f / "truth.h5ad").read_bytes()),
        None,
        ["no design", "unpool.pooled"],
    ),
    "design lost in concat": (decode, joined_carelessly, None, ["uns_merge"]),
    "no reference": (decode, nothing, lambda a: a[:2] + a[4:], ["reference", "minimum_norm", "12 genes"]),
    "mixture without reference": (
        decode,
        nothing,
        lambda a: [*a[:2], *a[4:], "--method", "mixture"],
        ["reference", "minimum_norm"],
    ),
    "unknown method": (decode, nothing, lambda a: [*a, "--method", "mixtrue"], ["'mixture'", "did you mean"]),
    "unknown noise stage": (decode, nothing, lambda a: [*a, "--noise", "pools"], ["'pool'"]),
    "unknown layer": (decode, nothing, lambda a: [*a, "--layer", "counts"], ["'counts'", "layer"]),
    "text as noise": (decode, nothing, lambda a: [*a, "--noise-var", "loud"], ["'loud'", "number"]),
    "negative noise": (decode, nothing, lambda a: [*a, "--noise-var", "-2"], ["-2", ">= 0"]),
    "noise not recorded": (
        decode,
        change("pools", lambda a: a.uns["unpool"].pop("simulated") and None),
        lambda a: [*a, "--noise-var", "recorded"],
        ["recorded", "estimated"],
    ),
    "text in the reference": (decode, text_column, lambda a: [*a[:3], a[3].with_suffix(".csv"), *a[4:]], ["gene_4"]),
    "text in the design": (measure, design_entry("high"), None, ["gene_1", "pool_0", "'high'"]),
    "negative weight": (measure, design_entry("-0.5"), None, ["gene_1", "pool_0", "-0.5"]),
    "infinite weight": (measure, design_entry("inf"), None, ["gene_1", "pool_0", "inf"]),
    "empty weight": (measure, design_entry(""), None, ["gene_1", "pool_0"]),
    "pool that no gene uses": (measure, design_frame(lambda d: d.assign(pool_9=0)), None, ["pool_9", "drop"]),
    "design of other genes": (
        measure,
        design_frame(lambda d: d.rename(index={"gene_1": "gene_x"})),
        None,
        ["'gene_x'"],
    ),
    "design with a gene twice": (
        measure,
        design_frame(lambda d: d.rename(index={"gene_1": "gene_0"})),
        None,
        ["'gene_0'", "2 times"],
    ),
    "binary file as design": (measure, text("design.csv", b"\x89PNG\xff\xfe\x00"), None, ["design.csv"]),
    "snr of zero": (measure, nothing, lambda a: [*a[:4], "--snr", "0", *a[6:]], ["snr", "> 0"]),
    "snr and noise variance": (measure, nothing, lambda a: [*a, "--noise-var", "1"], ["snr", "noise_var"]),
    "more pools per gene than pools": (
        design,
        nothing,
        lambda a: [*a, "--pools-per-gene", "7"],
        ["pools_per_gene=7", "6 pools"],
    ),
    "pools and pack ratio": (design, nothing, lambda a: [*a, "--pack-ratio", "0.5"], ["n_pools", "pack_ratio"]),
    "no genes": (design, nothing, lambda a: [*a[:3], "0", *a[4:]], ["genes=0", ">= 1"]),
    "negative number of cells": (
        design,
        nothing,
        lambda a: ["simulate", "low-rank", "--cells", "-5", "-o", a[-1]],
        ["n_cells=-5"],
    ),
}


def attempt(what, files, out):
    command, mess, edit, says = BAD[what]
    mess(files)
    args = command(files, out)
    return [str(a) for a in (edit(args) if edit else args)], says


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def check(code, stderr, says, out):
    """The one check of every bad input."""
    sentence = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert code == 2, stderr
    assert len(sentence) == 1, stderr
    assert "Traceback" not in stderr
    for word in says:
        assert word in sentence[0], f"{word!r} is not named in: {sentence[0]}"
    assert out.read_bytes() == OLD


@pytest.mark.parametrize("what", BAD)
def test_refused_by_name(what, files, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_bytes(OLD)
    args, says = attempt(what, files, out)
    before = listing(tmp_path)
    result = CliRunner().invoke(main, args)
    check(result.exit_code, result.stderr, says, out)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "what",
    ["NaN in the pools", "missing gene", "truncated h5ad", "missing file", "text in the design", "unknown method"],
)
def test_refused_in_a_process(what, files, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_bytes(OLD)
    args, says = attempt(what, files, out)
    run = subprocess.run([sys.executable, "-m", "unpool.cli", *args], capture_output=True, text=True)
    check(run.returncode, run.stderr, says, out)
    assert run.stdout == ""


def test_the_check_bites(files, tmp_path):
    """Good input passes through the same machinery with exit 0 and a new file: the check would fail."""
    out = tmp_path / "out.h5ad"
    out.write_bytes(OLD)
    result = CliRunner().invoke(main, [str(a) for a in decode(files, out)])
    with pytest.raises(AssertionError):
        check(result.exit_code, result.stderr, [], out)
    assert out.read_bytes() != OLD


def test_output_below_a_file(files, tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    result = CliRunner().invoke(main, [str(a) for a in decode(files, tmp_path / "file" / "out.h5ad")])
    check(result.exit_code, result.stderr, ["file/out.h5ad", "-o"], tmp_path / "file")


def test_output_is_a_folder(files, tmp_path):
    (tmp_path / "out").mkdir()
    result = CliRunner().invoke(main, [str(a) for a in decode(files, tmp_path / "out")])
    assert result.exit_code == 2
    assert "folder" in result.stderr


@pytest.mark.parametrize("limit", [0, 3000, 20_000])
def test_full_disk(limit, files, tmp_path):
    """A limit on the size of files stands in for a full disk: both fail in write()."""
    out = tmp_path / "out.h5ad"
    out.write_bytes(OLD)
    before = listing(tmp_path)

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    args = [sys.executable, "-m", "unpool.cli", *map(str, decode(files, out)), "--method", "gaussian"]
    run = subprocess.run(args, capture_output=True, text=True, preexec_fn=full)
    check(run.returncode, run.stderr, ["out.h5ad", "space"], out)
    assert listing(tmp_path) == before


GOOD = {
    "genes in another order": change("reference", lambda a: a[:, ::-1].copy()),
    "one cell": change("pools", lambda a: a[:1].copy()),
    "negative pools": change("pools", put(-4)),
    "float64": change("reference", set_x(lambda X: X.astype(np.float64))),
    "int": change("reference", set_x(lambda X: X.astype(np.int64))),
    "int16": change("reference", set_x(lambda X: X.astype(np.int16))),
    "bool": change("reference", set_x(lambda X: X > 2)),
    "CSR": change("reference", set_x(sparse.csr_matrix)),
    "CSC": change("reference", set_x(sparse.csc_matrix)),
    "CSR pools": change("pools", set_x(sparse.csr_matrix)),
    "CSC pools": change("pools", set_x(sparse.csc_matrix)),
    "int pools": change("pools", set_x(lambda X: np.rint(X).astype(np.int32))),
    "hostile names": lambda files: hostile(files),
}


def hostile(files):
    new = {"gene_0": "E-Cad/P-Cad", "gene_1": "<script>", "gene_2": "a b", "gene_3": "é"}
    for name in ("reference", "truth"):
        a = io.read_h5ad(files / f"{name}.h5ad")
        a.var_names = [new.get(n, n) for n in a.var_names]
        io.write_h5ad(a, files / f"{name}.h5ad")
    d = up.Design.read_csv(files / "design.csv")
    d = up.Design(d.matrices, genes=[new.get(n, n) for n in d.genes], pools=["p/0", *d.pools[1:]])
    io.write_h5ad(up.measure(io.read_h5ad(files / "truth.h5ad"), d, snr=5, rng=0), files / "pools.h5ad")


@pytest.mark.parametrize("what", GOOD)
def test_unusual_but_good(what, files, tmp_path, small):
    GOOD[what](files)
    result = CliRunner().invoke(main, [str(a) for a in decode(files, tmp_path / "out.h5ad")])
    assert result.exit_code == 0, (result.output, result.exception)
    X = io.read_h5ad(tmp_path / "out.h5ad").X
    assert np.isfinite(X).all()
    assert (X >= 0).all()
    usual = up.decode(small.pools, small.reference).X[: len(X)]
    changes_values = {"negative pools", "one cell", "bool", "int pools", "hostile names"}
    if what not in changes_values:
        np.testing.assert_allclose(X, usual, rtol=1e-3, atol=1e-3 * usual.max())


def test_backed_input_works(files, small):
    backed = ad.read_h5ad(files / "reference.h5ad", backed="r")
    pools = ad.read_h5ad(files / "pools.h5ad", backed="r")
    np.testing.assert_array_equal(up.decode(pools, backed).X, up.decode(small.pools, small.reference).X)
    backed.file.close()
    pools.file.close()


def test_a_warning_for_a_gene_in_no_pool(small):
    W = small.design.matrices[0].copy()
    W[3] = 0
    pools = up.measure(small.truth, up.Design(W, genes=small.design.genes), snr=5, rng=0)
    with pytest.warns(UserWarning, match=r"in no pool \(gene_3\)"):
        up.decode(pools, small.reference)


def test_shapes_that_differ(small):
    with pytest.raises(InputError, match="4 columns"):
        up.pooled(np.ones((5, 4)), small.design)
    with pytest.raises(InputError, match="9 cells"):
        up.pooled(np.ones((5, 6)), small.design, obs=pd.DataFrame(index=[str(i) for i in range(9)]))
    with pytest.raises(InputError, match="11 genes"):
        up.measure(np.ones((5, 11)), small.design)


def test_a_command_never_writes_over_its_input(files):
    for command, mine in ((decode, "pools.h5ad"), (decode, "reference.h5ad"), (measure, "truth.h5ad")):
        before = (files / mine).read_bytes()
        answer = CliRunner().invoke(main, [*map(str, command(files, files / mine))])
        assert answer.exit_code == 2
        assert "choose another file" in answer.stderr
        assert (files / mine).read_bytes() == before
    again = files / "made.h5ad"
    for _ in range(2):  # an old output may be written over
        assert CliRunner().invoke(main, [*map(str, measure(files, again))]).exit_code == 0


def wrong_types():
    design = up.design.balanced(12, 6, pools_per_gene=2, rng=0)
    cells = up.simulate.cell_types(60, 12, 3, rng=0)
    pools = up.measure(cells, design, snr=5, rng=0)
    decoded = up.decode(pools, method="minimum_norm")
    return {
        "pass a Design": lambda: up.pooled(pools.X, design.matrices[0]),
        "the design is of type str": lambda: up.measure(cells, "design.csv"),
        "list(adata.var_names)": lambda: up.design.balanced(cells, 6),
        "a list of names": lambda: up.design.balanced("CD3", 6),
        "pass what `evaluate` returned": lambda: up.pl.accuracy(cells),
        "the design is of type ndarray": lambda: up.pl.design(design.matrices[0]),
        "no obs['unpool_misfit']": lambda: up.pl.misfit(decoded),
        "report takes a path, then": lambda: up.report(decoded, "report.html"),
        "choose True, False or 'auto'": lambda: up.decode(pools, cells, adapt="yes"),
        "level='high'": lambda: up.intervals(cells, "high"),
        "decoded cells first": lambda: up.evaluate(cells, up.decode(pools, cells[:30].copy(), crossfit=False)),
        "(table.T)": lambda: up.Model.from_modules(pd.DataFrame(np.ones((12, 400)))),
    }


@pytest.mark.parametrize("said", wrong_types())
def test_other_types_are_refused_in_a_sentence(said):
    with pytest.raises(InputError) as refused:
        wrong_types()[said]()
    assert said in str(refused.value)


def test_the_package_runs_as_a_module():
    answer = subprocess.run([sys.executable, "-m", "unpool", "--version"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert answer.stdout.startswith("unpool, version")
