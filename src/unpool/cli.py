"""The command line: parse, call, print. Exit 0 done, 2 bad input, 3 not converged."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

import unpool as up
from unpool import io
from unpool._validate import number
from unpool.crossvalidate import CrossValidation
from unpool.errors import InputError, UnpoolError, UnpoolWarning

__all__ = ["main"]

EXAMPLES = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}


class _Command(click.Command):
    """A command that writes no file over one that it reads."""

    def invoke(self, ctx: click.Context) -> Any:
        output = ctx.params.get("output")
        for name, path in ctx.params.items():
            if name != "output" and isinstance(path, (Path, str)) and _same(path, output):
                raise InputError(
                    f"-o {output} is also the input {name.upper()}; choose another file, or it would be lost"
                )
        return super().invoke(ctx)


def _same(path: Path | str, output: Path | None) -> bool:
    return output is not None and output.exists() and os.path.exists(path) and os.path.samefile(path, output)


class _Group(click.Group):
    """A group whose commands turn unpool's errors and warnings into sentences on stderr."""

    command_class = _Command
    group_class = type  # of the same class

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries: the user of a command cannot act on them
            warnings.simplefilter("always", UnpoolWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except UnpoolError as error:
                click.echo(f"Error: {error}", err=True)
                ctx.exit(2)
            except MemoryError:
                click.echo(
                    "Error: out of memory; decode fewer cells at a time, or leave out the sd (--no-sd)", err=True
                )
                ctx.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    click.echo(f"{'Warning' if issubclass(category, UnpoolWarning) else category.__name__}: {message}", err=True)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json and --quiet, which every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and JSON).")(command)


_seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random."
)
_layer = click.option("--layer", metavar="NAME", help="Layer to use instead of X.")


def _output(default_help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=default_help)


def _done(message: str, result: dict[str, Any], *, as_json: bool, quiet: bool, text: str | None = None) -> None:
    """Say what happened: JSON or `text` on stdout, the message on stderr."""
    if as_json:
        click.echo(json.dumps(result, default=_plain, allow_nan=False))
    elif text and not quiet:
        click.echo(text)
    if not quiet:
        click.echo(message, err=True)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


@click.group(cls=_Group, context_settings=EXAMPLES)
@click.version_option(up.__version__, prog_name="unpool")
def main() -> None:
    """Plan and decode pooled (composite) measurements: few channels in, every gene out.

    \b
    unpool simulate cell-types --cells 2000 --genes 100 --types 8 -o truth.h5ad
    unpool design balanced --genes 100 --pools 25 -o design.csv
    unpool measure truth.h5ad --design design.csv --snr 5 -o pooled.h5ad
    unpool decode pooled.h5ad --reference reference.h5ad --noise-var recorded -o decoded.h5ad
    unpool evaluate decoded.h5ad truth.h5ad --pooled pooled.h5ad --reference reference.h5ad -o scores.csv
    unpool report decoded.h5ad --truth truth.h5ad --pooled pooled.h5ad --reference reference.h5ad -o report.html
    """


@main.group(context_settings=EXAMPLES)
def simulate() -> None:
    """Simulate a true expression matrix.

    \b
    unpool simulate low-rank --cells 500 --genes 100 --rank 10 -o truth.h5ad
    unpool simulate cell-types --cells 2000 --genes 100 --types 8 -o truth.h5ad
    """


def _simulated(truth: Any, output: Path, *, as_json: bool, quiet: bool) -> None:
    io.write_h5ad(truth, output)
    result = {"output": str(output), "cells": truth.n_obs, "genes": truth.n_vars, **truth.uns["unpool"]["parameters"]}
    _done(f"wrote {output}: {truth.n_obs} cells x {truth.n_vars} genes", result, as_json=as_json, quiet=quiet)


@simulate.command("low-rank", context_settings=EXAMPLES)
@click.option("--cells", type=int, default=500, show_default=True, help="Number of cells.")
@click.option("--genes", type=int, default=100, show_default=True, help="Number of genes.")
@click.option("--rank", type=int, default=10, show_default=True, help="Rank of the matrix.")
@click.option("--no-clip", is_flag=True, help="Keep negative entries.")
@_seed
@_output("Where to write the truth (h5ad).")
@_common
def simulate_low_rank(cells: int, genes: int, rank: int, no_clip: bool, seed: int, output: Path, **say: bool) -> None:
    """An exactly low-rank matrix U Vᵀ, U ~ N(10, 2²), V ~ N(15, 3²).

    \b
    unpool simulate low-rank --cells 500 --genes 100 --rank 10 -o truth.h5ad
    """
    _simulated(up.simulate.low_rank(cells, genes, rank, clip=not no_clip, rng=seed), output, **say)


@simulate.command("cell-types", context_settings=EXAMPLES)
@click.option("--cells", type=int, default=2000, show_default=True, help="Number of cells.")
@click.option("--genes", type=int, default=100, show_default=True, help="Number of genes.")
@click.option("--types", type=int, default=8, show_default=True, help="Number of cell types.")
@_seed
@_output("Where to write the truth (h5ad).")
@_common
def simulate_cell_types(cells: int, genes: int, types: int, seed: int, output: Path, **say: bool) -> None:
    """Negative-binomial counts of cell types with unequal frequencies.

    \b
    unpool simulate cell-types --cells 2000 --genes 100 --types 8 -o truth.h5ad
    """
    _simulated(up.simulate.cell_types(cells, genes, types, rng=seed), output, **say)


@main.group(context_settings=EXAMPLES)
def design() -> None:
    """Make a pooling design.

    \b
    unpool design balanced --genes 100 --pools 25 --pools-per-gene 3 -o design.csv
    unpool design bernoulli --genes genes.txt --pack-ratio 0.25 -o design.csv
    """


def _sized(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that both kinds of design share."""
    for option in (
        click.option("--equalise", type=click.Path(path_type=Path), help="Reference (h5ad, csv): weights become 1 / rms of each gene."),
        click.option("--n-designs", type=int, default=1, show_default=True, help="Number of independent designs."),
        click.option("--pack-ratio", type=float, help="Pools / genes, instead of --pools."),
        click.option("--pools", type=int, help="Number of pools."),
        click.option("--genes", required=True, metavar="N|FILE", help="Number of genes, or a file that names them: one name a line, or h5ad."),
    ):  # fmt: skip
        command = option(command)
    return _common(_output("Where to write the design (csv).")(_seed(command)))


def _gene_names(genes: str) -> int | list[str]:
    """Read a number of genes, or their names from a text file or an h5ad."""
    if genes.lstrip("+-").isdigit():
        return int(genes)
    path = io.existing(genes)
    if path.suffix.lower() == ".h5ad":
        return list(map(str, io.read_h5ad(path).var_names))
    if path.suffix.lower() in (".csv", ".tsv"):
        raise InputError(f"{path} is a table; give one gene name a line (txt), or an h5ad file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file; give one gene name a line, or an h5ad file") from error
    return [line.strip() for line in lines if line.strip()]


def _designed(made: up.Design, equalise: Path | None, output: Path, *, as_json: bool, quiet: bool) -> None:
    if equalise is not None:
        made = made.equalised(io.read_cells(equalise))
    made.to_csv(output)
    result = {
        "output": str(output), "genes": made.n_genes, "pools": made.n_pools, "designs": made.n_designs,
        "pack_ratio": made.pack_ratio, "digest": made.digest,
    }  # fmt: skip
    _done(f"wrote {output}\n{made}", result, as_json=as_json, quiet=quiet)


@design.command("balanced", context_settings=EXAMPLES)
@click.option("--pools-per-gene", type=int, default=3, show_default=True, help="Number of pools of each gene.")
@_sized
def design_balanced(
    genes: str, pools: int | None, pack_ratio: float | None, pools_per_gene: int, n_designs: int,
    equalise: Path | None, seed: int, output: Path, **say: bool,
) -> None:  # fmt: skip
    """Every gene in the same number of pools, pools equally full, pairs of genes overlapping little.

    \b
    unpool design balanced --genes ref.h5ad --pools 25 --equalise ref.h5ad -o design.csv
    """
    made = up.design.balanced(
        _gene_names(genes), pools, pack_ratio=pack_ratio, pools_per_gene=pools_per_gene, n_designs=n_designs, rng=seed
    )
    _designed(made, equalise, output, **say)


@design.command("bernoulli", context_settings=EXAMPLES)
@click.option("--p", type=float, default=0.25, show_default=True, help="Probability that a gene is in a pool.")
@_sized
def design_bernoulli(
    genes: str, pools: int | None, pack_ratio: float | None, p: float, n_designs: int,
    equalise: Path | None, seed: int, output: Path, **say: bool,
) -> None:  # fmt: skip
    """Each gene in each pool with probability p.

    \b
    unpool design bernoulli --genes 100 --pack-ratio 0.25 -o design.csv
    """
    made = up.design.bernoulli(_gene_names(genes), pools, pack_ratio=pack_ratio, p=p, n_designs=n_designs, rng=seed)
    _designed(made, equalise, output, **say)


_noise = click.option(
    "--noise", "noise_stage", default="pool", show_default=True, metavar="pool|expression",
    help="Where the noise enters: in the pools (detector) or before pooling (staining, biology).",
)  # fmt: skip


@main.command(context_settings=EXAMPLES)
@click.argument("truth", type=click.Path(path_type=Path))
@click.option("--design", "design_path", required=True, type=click.Path(path_type=Path), help="Design (csv).")
@click.option("--snr", type=float, help="Signal to noise; neither --snr nor --noise-var: no noise.")
@click.option("--noise-var", type=float, help="Noise variance, instead of --snr.")
@_noise
@click.option("--shot", is_flag=True, help="Count the pools: Poisson noise.")
@_layer
@_seed
@_output("Where to write the pools (h5ad).")
@_common
def measure(
    truth: Path, design_path: Path, snr: float | None, noise_var: float | None, noise_stage: str, shot: bool,
    layer: str | None, seed: int, output: Path, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Pool a true expression matrix (h5ad, csv) as an assay would.

    \b
    unpool measure truth.h5ad --design design.csv --snr 5 -o pooled.h5ad
    """
    pools = up.measure(
        io.read_cells(truth), up.Design.read_csv(design_path), snr=snr, noise_var=noise_var, noise_stage=noise_stage,
        shot=shot, layer=layer, rng=seed,
    )  # fmt: skip
    io.write_h5ad(pools, output)
    result = {"output": str(output), "cells": pools.n_obs, "pools": pools.n_vars, **pools.uns["unpool"]["simulated"]}
    _done(f"wrote {output}: {pools.n_obs} cells x {pools.n_vars} pools", result, as_json=as_json, quiet=quiet)


_adapt = click.option(
    "--adapt", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
    help="Whether the pooled cells teach the model in which proportions types come; auto: where they differ.",
)  # fmt: skip
_ADAPT: dict[str, bool | str] = {"auto": "auto", "yes": True, "no": False}
_no_selection = click.option(
    "--no-selection", is_flag=True, help="Choose nothing on held-out reference cells: extra components and heavy tails."
)
_calibrate = click.option("--calibrate", metavar="gain", help="Estimate a gain and an offset for every pool first.")
_fast = click.option("--fast", is_flag=True, help="One small mixture: an order of magnitude faster, less accurate.")
_reference_group = click.option(
    "--reference-group", metavar="COLUMN", help="Column of the reference's obs, e.g. donor, to hold out whole."
)


_pools_design = click.option(
    "--design", "design_path", type=click.Path(path_type=Path),
    help="Design (csv) of measured pools that carry none: then POOLED is a table of cells x pools (csv, h5ad).",
)  # fmt: skip


def _pools(path: Path, design_path: Path | None) -> Any:
    """Pools that carry their design, or a table of measured pools and the design's file."""
    if design_path is None:
        if path.suffix.lower() in (".csv", ".tsv"):
            raise InputError(f"{path} is a table of pools; say which genes they hold: --design design.csv")
        return io.read_h5ad(path)
    return up.pooled(io.read_cells(path), up.Design.read_csv(design_path))


def _noise_value(value: str | None) -> float | str | None:
    return value if value in (None, "recorded") else number(value, "--noise-var")


@main.command(context_settings=EXAMPLES)
@click.argument("pooled", type=click.Path(path_type=Path))
@_pools_design
@click.option("--reference", type=click.Path(path_type=Path), help="Cells with every gene measured (h5ad, csv).")
@click.option(
    "--method", default="auto", show_default=True, help="auto, mixture, gaussian, minimum_norm, nuclear_norm or als."
)
@click.option("--rank", type=int, help="Number of factors of als.")
@click.option(
    "--noise-var", metavar="V|recorded", help="Noise variance, or what `measure` recorded; default: estimated."
)
@_noise
@click.option("--no-sd", is_flag=True, help="Leave out the error bars (faster, half the memory).")
@click.option("--no-crossfit", is_flag=True, help="Hold no reference cells out: error bars are not calibrated.")
@_adapt
@_no_selection
@_calibrate
@_fast
@click.option("--reference-label", metavar="COLUMN", help="Column of the reference's obs, e.g. cell_type, to infer.")
@_reference_group
@click.option("--allow-unconverged", is_flag=True, help="Exit 0 although a solver stopped before its tolerance.")
@click.option("--layer", metavar="NAME", help="Layer of the reference to use instead of X.")
@_seed
@_output("Where to write the decoded cells (h5ad).")
@_common
def decode(
    pooled: Path, design_path: Path | None, reference: Path | None, method: str, rank: int | None, noise_var: str | None, noise_stage: str,
    no_sd: bool, no_crossfit: bool, adapt: str, no_selection: bool, calibrate: str | None, fast: bool,
    reference_label: str | None, reference_group: str | None, allow_unconverged: bool, layer: str | None,
    seed: int, output: Path, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Recover every gene of every cell from the pools.

    \b
    unpool decode pooled.h5ad --reference reference.h5ad -o decoded.h5ad
    unpool decode measured.csv --design design.csv --reference reference.h5ad -o decoded.h5ad
    """
    decoded = up.decode(
        _pools(pooled, design_path), None if reference is None else io.read_cells(reference), method=method, rank=rank,
        noise_var=_noise_value(noise_var), noise_stage=noise_stage, sd=not no_sd, layer=layer, rng=seed,
        crossfit=not no_crossfit, adapt=_ADAPT[adapt], selection=not no_selection, calibrate=calibrate, fast=fast, reference_label=reference_label, reference_group=reference_group,
    )  # fmt: skip
    io.write_h5ad(decoded, output)
    record = decoded.uns["unpool"]
    result = {
        "output": str(output),
        "cells": decoded.n_obs,
        "genes": decoded.n_vars,
        "method": record["method"],
        "status": record["status"],
    }
    _done(
        f"wrote {output}: {decoded.n_obs} cells x {decoded.n_vars} genes by {record['method']}",
        result,
        as_json=as_json,
        quiet=quiet,
    )
    if not record.get("converged", True) and not allow_unconverged:
        click.get_current_context().exit(3)


def _optional(path: Path | None, read: Callable[[Path], Any]) -> Any:
    return None if path is None else read(path)


@main.command(context_settings=EXAMPLES)
@click.argument("decoded", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option("--pooled", type=click.Path(path_type=Path), help="The pools: adds baselines.")
@click.option("--reference", type=click.Path(path_type=Path), help="The reference: with --pooled, adds baselines.")
@click.option("--layer", metavar="NAME", help="Layer of truth and reference to use instead of X.")
@_output("Where to write the scores (csv, one row a gene).")
@_common
def evaluate(
    decoded: Path, truth: Path, pooled: Path | None, reference: Path | None, layer: str | None, output: Path,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Score decoded cells against the truth, beside trivial baselines.

    \b
    unpool evaluate decoded.h5ad truth.h5ad --pooled pooled.h5ad --reference reference.h5ad -o scores.csv
    """
    scores = up.evaluate(
        io.read_h5ad(decoded), io.read_cells(truth), pooled=_optional(pooled, io.read_h5ad),
        reference=_optional(reference, io.read_cells), layer=layer,
    )  # fmt: skip
    scores.to_csv(output)
    _done(f"wrote {output}", {"output": str(output), **scores.summary}, as_json=as_json, quiet=quiet, text=str(scores))


@main.command(context_settings=EXAMPLES)
@click.argument("pooled", type=click.Path(path_type=Path))
@_pools_design
@click.option(
    "--reference", type=click.Path(path_type=Path), required=True, help="Cells with every gene measured (h5ad, csv)."
)
@click.option("--method", default="mixture", show_default=True, help="mixture or gaussian.")
@click.option(
    "--noise-var", metavar="V|recorded", help="Noise variance, or what `measure` recorded; default: estimated."
)
@_noise
@_adapt
@_no_selection
@_calibrate
@_fast
@_reference_group
@click.option("--layer", metavar="NAME", help="Layer of the reference to use instead of X.")
@_seed
@_output("Where to write the scores (csv, one row a pool).")
@_common
def crossvalidate(
    pooled: Path, design_path: Path | None, reference: Path, method: str, noise_var: str | None, noise_stage: str, adapt: str, no_selection: bool,
    calibrate: str | None, fast: bool, reference_group: str | None, layer: str | None, seed: int, output: Path,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Hide each pool in turn and foretell it from the others, beside baselines: needs no truth.

    Give the options that `unpool decode` is given: hidden pools are decoded in the same way.

    \b
    unpool crossvalidate pooled.h5ad --reference reference.h5ad -o hidden-pools.csv
    """
    found = up.crossvalidate(
        _pools(pooled, design_path), io.read_cells(reference), method=method, noise_var=_noise_value(noise_var),
        noise_stage=noise_stage, adapt=_ADAPT[adapt], selection=not no_selection, calibrate=calibrate, fast=fast,
        reference_group=reference_group, layer=layer, rng=seed,
    )  # fmt: skip
    found.to_csv(output)
    _done(f"wrote {output}", {"output": str(output), **found.summary}, as_json=as_json, quiet=quiet, text=str(found))


@main.command(context_settings=EXAMPLES)
@click.argument("decoded", type=click.Path(path_type=Path))
@click.option("--truth", type=click.Path(path_type=Path), help="The true expression: adds scores and scatter plots.")
@click.option("--pooled", type=click.Path(path_type=Path), help="The pools: adds baselines.")
@click.option("--reference", type=click.Path(path_type=Path), help="The reference: with --pooled, adds baselines.")
@click.option(
    "--crossvalidation",
    type=click.Path(path_type=Path),
    help="Scores (csv) from `unpool crossvalidate`: adds a table of hidden pools.",
)
@click.option("--layer", metavar="NAME", help="Layer of truth and reference to use instead of X.")
@_output("Where to write the page (html).")
@_common
def report(
    decoded: Path, truth: Path | None, pooled: Path | None, reference: Path | None, crossvalidation: Path | None,
    layer: str | None, output: Path, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Write one self-contained HTML page about a decoding.

    \b
    unpool report decoded.h5ad --truth truth.h5ad --pooled pooled.h5ad --reference reference.h5ad -o report.html
    """
    up.report(
        output, io.read_h5ad(decoded), truth=_optional(truth, io.read_cells), pooled=_optional(pooled, io.read_h5ad),
        reference=_optional(reference, io.read_cells), layer=layer,
        crossvalidation=_optional(crossvalidation, CrossValidation.read_csv),
    )  # fmt: skip
    _done(f"wrote {output}", {"output": str(output)}, as_json=as_json, quiet=quiet)


@main.command(context_settings=EXAMPLES)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--pools", default="8,12", show_default=True, metavar="M,M,...", help="Numbers of pools to try.")
@click.option(
    "--design",
    "design_name",
    default="random",
    show_default=True,
    metavar="random|FILE",
    help="Random designs, or one from a csv file, whose weights apply to genes at unit norm.",
)
@click.option(
    "--noise", default="pool", show_default=True, metavar="pool|expression|none", help="Where the noise enters."
)
@click.option("--snr", type=float, default=5.0, show_default=True, help="Signal to noise.")
@click.option(
    "--split",
    default="random",
    show_default=True,
    metavar="random|group:COLUMN",
    help="60 % of the cells as reference, or one group of obs[COLUMN] held out at a time.",
)
@click.option("--repeats", type=int, default=9, show_default=True, help="Repetitions; number k uses seed k.")
@_layer
@_common
def benchmark(
    data: Path, pools: str, design_name: str, noise: str, snr: float, split: str, repeats: int, layer: str | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Score every method and baseline on your own data (h5ad, csv): pool a part, decode it, compare.

    \b
    unpool benchmark cells.h5ad --pools 8,12 --noise pool
    unpool benchmark cells.h5ad --design design.csv --split group:tissue --json
    """
    try:
        sizes = [int(m) for m in pools.split(",")]
    except ValueError:
        raise InputError(f"--pools={pools!r}: expected whole numbers with commas between them, e.g. 8,12") from None
    result = up.benchmark(
        io.read_cells(data), pools=sizes, design="random" if design_name == "random" else up.Design.read_csv(design_name),
        noise=noise, snr=snr, split=split, repeats=repeats, layer=layer,
        reference_group=split.removeprefix("group:") if split.startswith("group:") else None,
        say=None if quiet else lambda line: click.echo(line, err=True),
    )  # fmt: skip
    _done(f"benchmarked {data}", result.to_dict(), as_json=as_json, quiet=quiet, text=str(result))


@main.command(context_settings=EXAMPLES)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder to write into.",
)
@_seed
@_common
def demo(out: Path, seed: int, as_json: bool, quiet: bool) -> None:
    """Run the main job on real blood cells: 100 genes measured in 25 pools, decoded and judged.

    \b
    unpool demo
    """
    from unpool.demo import run

    scores = run(out, seed=seed, say=(lambda _: None) if quiet or as_json else lambda line: click.echo(line, err=True))
    text = f"{scores}\n\nOpen {os.path.join(out, 'report.html')} in a browser."
    _done(f"wrote {out}", {"output": str(out), **scores.summary}, as_json=as_json, quiet=quiet, text=text)


if __name__ == "__main__":
    sys.exit(main())
