"""`worldmodel show`: pictures of where a world model starts its chunks, and of the tokens and loops its frames take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worldmodel.scripts.options import Common, MaybeFloat, MaybePath, choose_device, require_out_folder, require_run


@dataclass(kw_only=True)
class Show(Common):
    """Draw what a world model does with an episode of the test set that it never saw.

    boundaries.png: where chunks start in frames that are seen, and in the same frames dreamed. tokens.png: chunks, and
    tokens of the main network, frame by frame. loops.png: how often the core ran on each of those, if there is a core.
    """

    run: Path
    """The run folder."""
    out: MaybePath = None
    """Folder of the pictures; the folder pictures in the run if not given."""
    loops: MaybeFloat = None
    """How often the core of the model runs, if it has one; as often as in training on average if not given."""


def run(args: Show) -> None:
    """Draw, and say where the pictures are."""
    require_run(args.run)
    folder = args.run / "pictures" if args.out is None else args.out
    require_out_folder("--out", folder)
    from worldmodel.checkpoint import load_environment, load_model
    from worldmodel.envs.boundary_pictures import draw_boundaries
    from worldmodel.envs.test_set import load_test_set
    from worldmodel.envs.token_pictures import draw_loops, draw_tokens, liveliest_episode, watch_episode, watch_loops

    model = load_model(args.run, choose_device(args.device), loops=args.loops)
    test_set = load_test_set(load_environment(args.run))
    number = liveliest_episode(test_set)
    episode = watch_episode(model, test_set.table, number, seed=args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    draw_boundaries(model, test_set, folder / "boundaries.png", seed=args.seed)
    draw_tokens(folder / "tokens.png", episode)
    drawn = "boundaries.png and tokens.png"
    if model.core is not None:
        loops = watch_loops(model, test_set.table, number, seed=args.seed)
        draw_loops(folder / "loops.png", loops, episode.frames)
        drawn = "boundaries.png, tokens.png and loops.png"
    print(f"{folder} holds {drawn}.")


def go_on(args: Show) -> str:
    """What to do after Ctrl-C."""
    return "The same command draws all pictures anew."
