"""Which dreamed steps go wrong: those that training never showed, or those that it showed often?

    python benchmarks/transitions.py --run runs/doorkey

Every frame of the fixed test set is dreamed one step from the true frames before it, most likely codes. Frames that
differ from the one before, on ground that was seen, are counted by how often the training data hold the same transition
(frame, action, next frame), by the action, and by the player. Beside that, how far a mere list of those transitions
would come: the windows of `worldmodel evaluate` in which training showed each step on the way. The JSONs go to
benchmarks/results/.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from timing import revision

from worldmodel.checkpoint import load_environment, load_model
from worldmodel.envs.fidelity import TILED, frame_classes
from worldmodel.envs.fidelity_metrics import TileVocabulary, frame_scores
from worldmodel.envs.seen_ground import on_seen_ground
from worldmodel.envs.segments import FrameTable
from worldmodel.envs.store import EpisodeStore
from worldmodel.envs.test_set import TestSet, load_test_set
from worldmodel.envs.windows import choose_windows
from worldmodel.model import WorldModel

RESULTS = Path(__file__).parent / "results"
CONTEXT = 8
HORIZONS = (1, 5, 15, 50)
COUNTS = (0, 1, 5, 50)  # lower ends of the classes of how often training showed a transition
Tally = dict[str, dict[str, list[int]]]  # by kind, then by class: how many are exact, and how many there are


@dataclass
class Options:
    """What to measure."""

    run: Path
    """A run folder with a trained world model of a grid whose tiles are known."""
    length: int = 40
    """Frames of each test episode that are looked at."""
    windows: int = 1500
    """Places, at each number of steps, at which it is asked whether training showed the whole way."""
    out: Path | None = None
    """Where the JSON of the run goes; benchmarks/results/transitions_ENV.json if not given. That of the data always is
    benchmarks/results/recorded_ENV.json."""


def shown_in_training(table: FrameTable) -> Counter[tuple[bytes, int, bytes]]:
    """How often each transition is in the data."""
    name = [frame.tobytes() for frame in table.frames]
    follows = np.flatnonzero(~table.first)
    return Counter((name[table.index[i - 1]], int(table.action[i]), name[table.index[i]]) for i in follows)


def shown_all_the_way(table: FrameTable, test: TestSet, windows: int) -> Tally:
    """In how many windows of the fidelity, and of how many, training showed every transition since the context.

    Nobody who only remembers what training showed foretells more. By the class of the last frame (see `frame_classes`),
    then by the number of steps.
    """
    t, known = test.table, shown_in_training(table)
    name = [frame.tobytes() for frame in t.frames]
    new = [
        not t.first[i] and not known[name[t.index[i - 1]], int(t.action[i]), name[t.index[i]]]
        for i in range(len(t.index))
    ]
    so_far = np.cumsum(new)
    chosen = choose_windows(t, test.succeeding, context=CONTEXT, horizons=HORIZONS, count=windows)
    result: Tally = defaultdict(dict)
    for column, horizon in enumerate(HORIZONS):
        rows = np.flatnonzero(chosen.sampled[:, column])
        shown = so_far[chosen.at(horizon)[rows]] == so_far[chosen.at(0)[rows]]
        for label, belongs in frame_classes(t, chosen, test.shown, horizon, rows).items():
            result[label][str(horizon)] = [int((shown & belongs).sum()), int(belongs.sum())]
    return dict(result)


def class_of(count: int) -> str:
    """The class of a transition that training showed `count` times."""
    lower = max(c for c in COUNTS if c <= count)
    upper = [c for c in COUNTS if c > lower]
    return "never" if lower == 0 else f"{lower} to {upper[0] - 1}" if upper else f"{lower} or more"


@torch.no_grad()
def tally(model: WorldModel, table: FrameTable, test: TestSet, vocabulary: TileVocabulary, length: int) -> Tally:
    """Dream every step of the test episodes, side by side."""
    t, known = test.table, shown_in_training(table)
    begins, ends = t.begin[:-1], t.begin[1:]
    state, rows = model.initial_state(len(begins)), np.arange(len(begins))
    result: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for step in range(length):
        at = np.minimum(begins + step, ends - 1)
        action, frame = torch.from_numpy(t.action[at]), torch.from_numpy(t.frames[t.index[at]])
        if step >= CONTEXT:
            _, out = model.imagine(state, action, greedy=True)
            dreamed, true = model.decode(out).cpu().numpy(), t.frames[t.index[at]]
            scale = model.config.observation.scale
            exact = frame_scores(dreamed, true, kind="image", scale=scale, vocabulary=vocabulary)["exact"]
            context = np.minimum(begins[:, None] + np.arange(step), ends[:, None] - 1)
            counts = (begins + step < ends) & (t.index[at] != t.index[at - 1]) & on_seen_ground(test.shown, context, at)
            for row in rows[counts]:
                before, here = (t.frames[t.index[at[row] - back]].tobytes() for back in (1, 0))
                seen = known[before, int(t.action[at[row]]), here]
                kinds = {
                    "shown in training": class_of(seen),
                    "action": str(int(t.action[at[row]])),
                    "player": "breadth-first" if test.succeeding[row] else "random",
                }
                for kind, name in kinds.items():
                    result[kind][name][0] += int(exact[row])
                    result[kind][name][1] += 1
        state, _ = model.observe(state, action, frame, torch.full((len(begins),), step == 0))
    return {kind: dict(sorted(classes.items())) for kind, classes in result.items()}


def main(options: Options) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    model, environment = load_model(options.run), load_environment(options.run)
    recorded = json.loads((options.run / "training.json").read_text())["data"]
    table = FrameTable.from_store(EpisodeStore.open(options.run / recorded))
    size = TILED[environment["wrappers"][-1]]
    test = load_test_set(environment)
    found = tally(model, table, test, TileVocabulary.of(table.frames, size), options.length)
    for kind, classes in found.items():
        print(kind)
        for name, (exact, total) in classes.items():
            print(f"  {name:14s} {exact:5d} of {total:5d} exact, {exact / total:.1%}")
    way = shown_all_the_way(table, test, options.windows)
    print("training showed every step on the way")
    for horizon, (shown, total) in way["changed_seen"].items():
        print(f"  {horizon:>3s} steps, changed frames on seen ground: {shown:5d} of {total:5d}, {shown / total:.1%}")
    about = {"format_version": 1, "environment": environment["id"], **revision()}
    path, recorded = (RESULTS / f"{name}_{environment['id']}.json" for name in ("transitions", "recorded"))
    path = options.out or path
    path.write_text(json.dumps(about | found, indent=1))
    recorded.write_text(json.dumps(about | {"windows": options.windows, "shown all the way": way}, indent=1))
    print(f"\nwritten to {path} and {recorded}")


if __name__ == "__main__":
    main(tyro.cli(Options))
