"""Kernels in C: compiled once, kept whole, and done without where there is no compiler."""

import os
import subprocess
import sys

import pytest
import torch

from worldmodel.kernels.backend import why_missing

if why_missing("native") is not None:
    pytest.skip("there is no C compiler", allow_module_level=True)

from worldmodel.kernels import native


def test_a_library_is_compiled_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.build()
    (made,) = (tmp_path / "worldmodel").iterdir()  # and nothing half-made beside it
    stamp = made.stat().st_mtime_ns
    native.build()
    assert made.stat().st_mtime_ns == stamp


def test_another_processor_gets_another_library(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.build()
    monkeypatch.setattr(native, "processor", lambda: "another")
    native.build()
    assert len(list((tmp_path / "worldmodel").iterdir())) == 2


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda m, p: m.setattr(native.shutil, "which", lambda name: None), "there is no C compiler"),
        (lambda m, p: m.setattr(native, "FLAGS", ("-no-such-flag",)), "does not compile the kernels in C"),
        (lambda m, p: (p / "worldmodel").write_text("a file where the folder should be"), "cannot be kept in"),
    ],
)
def test_where_it_cannot_be_compiled_it_counts_as_missing(tmp_path, monkeypatch, change, words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    change(monkeypatch, tmp_path)
    with pytest.raises(ModuleNotFoundError, match=words):
        native.build()


def test_without_a_compiler_torch_runs_and_nobody_is_bothered(tmp_path):
    code = (
        "import torch\n"
        "from worldmodel.kernels import mamba_step as steps\n"
        "from worldmodel.kernels.backend import choose\n"
        "assert choose('mamba_step', torch.zeros(1), None, steps.MAMBA_STEP) is steps.mamba_step_torch\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path), "CC": "none"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rows,threads", [(1, 4), (5, 2), (7, 3), (2, 8)])
def test_threads_share_the_rows_without_gap_or_overlap(rows, threads):
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        native.over_rows(lambda a, b: seen.append((a, b)), rows, native.SMALL + 1)
    finally:
        torch.set_num_threads(before)
    assert sorted(row for a, b in seen for row in range(a, b)) == list(range(rows))
    assert len(seen) == min(rows, threads)
