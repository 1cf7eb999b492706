"""The README keeps its word: its ten lines run, its commands exist, its pictures are there."""

import re
from pathlib import Path

import unpool as up
from unpool.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run(tmp_path, monkeypatch):
    [block] = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(block.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert names["scores"].summary["removed_share"] > 0
    assert names["decoded"].shape == names["truth"].shape
    assert names["up"] is up


def test_what_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for command in re.search(r"`unpool ([a-z |]+)`", README).group(1).split(" | "):
        assert command in main.commands
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for script in re.findall(r"python (benchmarks/[a-z_]+\.py)", README):
        assert (ROOT / script).exists(), script
