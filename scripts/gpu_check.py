"""What the kernels and the model do on a GPU, in one command and less than eight minutes.

    python scripts/gpu_check.py                            # writes benchmarks/gpu/CARD_TORCH.json
    python scripts/gpu_check.py --quick                    # toy sizes: does everything compile and run?
    python scripts/gpu_check.py --only ssd_scan            # the parts whose name holds this
    python scripts/gpu_check.py --quick --device cpu       # the check itself, without a GPU

It needs torch and numpy, and Triton for its kernels, but no installation of this package and nothing else. Whatever
fails is written down and the rest goes on: parts run in another process, which is replaced when it dies, hangs, or has
lost the card. The exit code is 1 if something failed or broke; what is not installed here counts as neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from worldmodel.scripts.gpu.parts import Part, Result, all_parts, work
from worldmodel.scripts.gpu.report import one_line, summary

FORMAT_VERSION = 1
STARTING, PATIENCE = 120.0, 150.0  # seconds for a process to start, and for one part, compiling included
SHARE_OF_KERNELS = 0.6  # of the time; the models are to have the rest


def main() -> int:
    """Run the parts, print a line for each and a table of all, write the JSON after every part."""
    options = _options()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no GPU here that torch can use, so there is nothing to check (--device cpu --quick runs anyway)."
        )
        return 0
    began = time.perf_counter()
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "quick": options.quick,
        "finished": False,
        "machine": {},
        "rates": {},
        "parts": [],
    }
    chosen = [p for p in all_parts(options.quick) if p.group == "machine" or any(w in p.name for w in options.only)]
    path = options.out / "unknown.json"
    for part, result in run(chosen, options.device, options.quick, 60 * options.minutes):
        if part.name in content:
            content[part.name] = result
        else:
            content["parts"].append({"group": part.group, "name": part.name, **part.about, **result})
        if part.name == "machine":
            path = options.out / _file_name(result, options.quick)
        content["seconds"] = time.perf_counter() - began
        print(one_line(part.name, result, content["rates"]), flush=True)
        write(path, content)
    content["finished"] = True
    write(path, content)
    print(summary(content))
    print(f"\n{content['seconds']:.0f} s, written to {path}")
    results = (content["machine"], content["rates"], *content["parts"])
    return int(any(result.get("status") in ("fail", "error") for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gpu"), help="folder of the JSON")
    parser.add_argument("--quick", action="store_true", help="toy sizes, few repeats")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tests this script")
    parser.add_argument("--only", nargs="*", default=[""], metavar="WORD", help="parts whose name holds one of these")
    parser.add_argument("--minutes", type=float, default=7.5, help="no part begins later than this")
    return parser.parse_args()


def run(
    parts: list[Part], device: str, quick: bool, seconds: float, worker: Callable[..., None] = work
) -> Iterator[tuple[Part, Result]]:
    """Each part with its result, in their order."""
    context = multiprocessing.get_context("spawn")  # a fork could not use the card
    began, waiting = time.perf_counter(), list(parts)
    while waiting:
        ours, theirs = context.Pipe(duplex=False)
        names = [part.name for part in waiting]
        process = context.Process(target=worker, args=(theirs, device, quick, names), daemon=True)
        process.start()
        theirs.close()
        answers = 0
        try:
            if not ours.poll(STARTING):
                yield waiting.pop(0), {"status": "error", "reason": f"no process started in {STARTING:.0f} s"}
                continue
            with contextlib.suppress(EOFError):  # who dies at once is noticed below
                ours.recv()
            while waiting:
                gone = time.perf_counter() - began
                if gone > seconds * (SHARE_OF_KERNELS if waiting[0].group == "kernels" else 1.0):
                    group = waiting[0].group
                    late = [part for part in waiting if part.group == group]
                    waiting = [part for part in waiting if part.group != group]
                    yield from ((part, {"status": "skipped", "reason": "no time was left"}) for part in late)
                    break  # the process is still at one of them
                if not ours.poll(PATIENCE):
                    yield waiting.pop(0), {"status": "error", "reason": f"no answer in {PATIENCE:.0f} s"}
                    break
                try:
                    result = ours.recv()
                except EOFError:
                    process.join()
                    if process.exitcode or not answers:  # else it has lost the card, and said so by leaving
                        yield waiting.pop(0), {"status": "error", "reason": f"the process died ({process.exitcode})"}
                    break
                answers += 1
                yield waiting.pop(0), result
        finally:
            process.kill()
            process.join()
            ours.close()


def _file_name(machine: Result, quick: bool) -> str:
    card = str(machine.get("device", "unknown"))
    version = str(machine.get("torch", torch.__version__))
    name = re.sub(r"[^A-Za-z0-9.]+", "-", card).strip("-") + "_torch-" + re.sub(r"[^A-Za-z0-9.]+", "-", version)
    return f"{name}{'_quick' if quick else ''}.json"


def write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    plain = json.loads(json.dumps(content), parse_constant=str)  # NaN is no JSON
    temporary.write_text(json.dumps(plain, indent=1))
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
