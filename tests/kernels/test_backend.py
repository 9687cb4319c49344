"""Who runs: by device, by argument, by variable, and one sentence where that is not possible."""

import pytest
import torch

from worldmodel.kernels import backend as backends
from worldmodel.kernels.backend import MissingBackend, choose

X = torch.zeros(1)


def here(x):
    return "torch"


def fused(x):
    return "triton"


def library(x):
    return "mamba"


RUN = {"mamba": library, "triton": fused, "torch": here}


def test_a_cpu_takes_the_reference_unless_asked():
    assert choose("k", X, None, RUN) is here


@pytest.mark.parametrize(
    "setting,expected",
    [("triton", fused), ("k=triton", fused), ("other=triton", here), ("other=torch,k=triton", fused), ("flash", here)],
)
def test_the_variable_chooses_for_all_or_for_one(monkeypatch, setting, expected):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(backends.VARIABLE, setting)
    assert choose("k", X, None, RUN) is expected


def test_the_argument_wins_over_the_variable(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "triton")
    assert choose("k", X, "torch", RUN) is here


@pytest.mark.parametrize(
    "setting,argument,words",
    [
        ("cuda", None, "there is no backend 'cuda'"),
        ("k=flash", None, "k has only mamba, triton, torch"),
        ("", "flash", "k has no backend 'flash', only mamba, triton, torch"),
        ("", "mamba", "needs mamba-ssm, which cannot be imported"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(monkeypatch, setting, argument, words):
    monkeypatch.setenv(backends.VARIABLE, setting)
    with pytest.raises(MissingBackend, match=words) as error:
        choose("k", X, argument, RUN)
    assert "\n" not in str(error.value)


def test_triton_on_a_cpu_without_its_interpreter_says_so(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(MissingBackend, match=r"runs on a GPU, not on a CPU.*TRITON_INTERPRET=1"):
        choose("k", X, "triton", RUN)


def test_a_gpu_takes_the_first_that_is_installed(monkeypatch):
    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.setattr(backends, "why_missing", lambda name: "no" if name == "mamba" else None)
    assert choose("k", OnGpu(), None, RUN) is fused
    monkeypatch.setattr(backends, "why_missing", lambda name: None if name == "torch" else "no")
    assert choose("k", OnGpu(), None, RUN) is here


def test_a_broken_installation_is_missing_and_warned_of(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: _ZN3c10\nmore lines")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    backends.why_missing.cache_clear()
    try:
        with pytest.warns(UserWarning, match="flash-attn is installed but cannot be used: undefined symbol"):
            assert backends.why_missing("flash") == "undefined symbol: _ZN3c10"
    finally:
        backends.why_missing.cache_clear()
