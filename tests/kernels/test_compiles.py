"""Every Triton kernel compiles for an H100, which takes no GPU. The interpreter of the other tests forgives much."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# Launches stop after the compiler, so what comes out of the kernels is whatever was in memory.
CODE = """
import json, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

class H100:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

driver.set_active(H100())
run, compiled = jit.JITFunction.run, []

def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    compiled.append((self.fn.__module__.split(".")[-1], self.fn.__name__, len(kernel.asm["cubin"])))
    return kernel

jit.JITFunction.run = compile_only

from worldmodel.kernels import backend

backend.interpreted = lambda: True  # so that "triton" is allowed on the CPU

from worldmodel.scripts.gpu.index_cases import index_cases
from worldmodel.scripts.gpu.sequence_cases import sequence_cases
from worldmodel.scripts.gpu.sizes import Sizes, all_sizes

small = next(sizes for sizes in all_sizes(quick=False) if sizes.name == "small")
few = Sizes(name="small", config=small.config, rows=2, frames=16, distinct=2, dreams=2)
for case in (*sequence_cases(few), *index_cases(few)):
    if "triton" not in case.backends or (case.kernel == "ssd_scan" and "causal" not in case.size):
        continue  # the scan is in mamba_mix, too
    precision = case.precisions[-1]  # bf16 where there is one
    inputs = case.inputs(torch.Generator().manual_seed(0))
    if precision == "bf16":
        inputs = {n: t.bfloat16() if t.is_floating_point() and n not in case.wide else t for n, t in inputs.items()}
    inputs = {n: t.requires_grad_(n in case.learned) for n, t in inputs.items()}
    outputs = [t for t in case.call(inputs, "triton") if t.requires_grad]
    if outputs:
        torch.autograd.grad([t.sum() for t in outputs], [inputs[n] for n in case.learned], allow_unused=True)
print(json.dumps(compiled))
"""


def test_for_an_h100():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = json.loads(done.stdout.splitlines()[-1])
    assert all(size > 0 for _, _, size in compiled)
    modules = {module for module, _, _ in compiled}
    assert modules >= {
        "triton_compaction",
        "triton_ema",
        "triton_mamba_step",
        "triton_noise",
        "triton_routing",
        "triton_ssd",
    }
    assert {name for module, name, _ in compiled if module == "triton_ssd"} >= {"_forward", "_backward"}
