"""The ablation's record as a picture: every dot where its number says."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import ablation_picture
import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes

RECORD = {("plain", 0): 0.5, ("plain", 1): 0.7, ("values", 0): 0.6}


def measured(exact: float) -> dict[str, Any]:
    """What the picture reads of a measurement."""
    score = {"15": {"dream": exact}}
    return {"bits": {"above_floor": 100 * exact}, "horizons": score, "frames_per_cpu_second": 1e4 * exact}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for (variant, seed), exact in RECORD.items():
        plan = {"seed": seed, "updates": 5000, "cpu_minutes": 5.0}
        found = {"plan": plan, "evaluations": {"cpu": measured(exact), "updates": measured(exact / 2)}}
        if variant == "values":
            del found["evaluations"]["updates"]  # it was never waited for
        (tmp_path / f"{variant}_seed{seed}.json").write_text(json.dumps(found))
    return tmp_path


def test_every_number_is_a_dot_and_the_plain_models_are_a_band(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[Any]] = defaultdict(list)
    monkeypatch.setattr(Axes, "plot", lambda axes, x, y, *_, fillstyle, **__: drawn["dots"].append((x, y, fillstyle)))
    band = Axes.axvspan
    monkeypatch.setattr(Axes, "axvspan", lambda axes, *ends, **look: drawn["bands"].append(ends) or band(axes, *ends))
    path = tmp_path / "record.png"
    assert ablation_picture.draw(ablation_picture.Options(results=results, out=path)) == 2
    bits, exact, later = drawn["dots"][:3], drawn["dots"][3:6], drawn["dots"][6:8]
    assert bits == [(50.0, 0, "full"), (70.0, 0, "none"), (60.0, 1, "full")]
    assert exact == [(0.5, 0, "full"), (0.7, 0, "none"), (0.6, 1, "full")]
    assert later == [(0.25, 0, "full"), (0.35, 0, "none")]
    assert np.allclose(drawn["bands"], [(50, 70), (0.5, 0.7), (0.25, 0.35), (2500, 3500)])
    assert matplotlib.image.imread(path).shape[1] == 1920


def test_without_results_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run benchmarks/ablation\.py first"):
        ablation_picture.draw(ablation_picture.Options(results=tmp_path))
