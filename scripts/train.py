"""`worldmodel train`: a world model from an episode store, into a run folder that can be stopped and resumed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from worldmodel.errors import UserError
from worldmodel.scripts.options import (
    Common,
    MaybeFloat,
    MaybeInt,
    MaybePath,
    MaybeStr,
    begun_seed,
    choose_device,
    given,
    require_out_folder,
    require_positive,
)

if TYPE_CHECKING:
    from worldmodel.config import ModelConfig
    from worldmodel.envs.store import EpisodeStore

# How a run was begun: what --resume goes on with, and where `worldmodel dream` finds the episodes.
RECORD_FILE = "training.json"
DEFAULT_MINUTES = 10.0
TRAINING = "training."  # how the names of settings begin that are not the model's
GROWN_PICTURES = 200  # updates that a model which has grown only paints at first, unless told otherwise

Config = TypeVar("Config")


@dataclass(kw_only=True)
class Train(Common):
    """Train a world model on collected episodes.

    Ctrl-C saves; --resume goes on exactly where it stopped, and options that are not given again stay as they were.
    """

    data: Path
    """Folder of episodes, from `worldmodel collect` or `worldmodel import`."""
    out: Path
    """The run folder."""
    grow: MaybePath = None
    """A run on images half as high and wide: its averaged model goes on with these, and is not begun anew."""
    preset: MaybeStr = None
    """Size of the model: tiny (the default) or small."""
    boundary: Annotated[
        Literal["stride", "learned", "tried", "surprise", "change", "random", "none"] | None,
        tyro.conf.arg(metavar="{stride,learned,tried,surprise,change,random,none}", help_behavior_hint=""),
    ] = None
    """Where chunks start: at a fixed stride, where a learned router puts them (H-Net's, one that learns by trying, or
    one that asks how much could not be foretold), where a patch is unlike the last, at random, or at every patch. The
    preset's if not given."""
    chunks: MaybeFloat = None
    """Chunks a frame: exact for stride (the nearest whole number), the mean that is aimed at for the others. The
    preset's if not given."""
    settings: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="NAME=VALUE")
    ] = ()
    """Any setting of the model or of its training, as often as you like: --set main.loop.layers=T1 --set
    main.loop.loops=8 --set causal.0.extra=1 --set training.average=0.99 --set training.losses.representation=0.1. An
    unknown name is answered with those that there are; worldmodel/config.py says what each one does."""
    updates: MaybeInt = None
    """Stop after so many updates, counted from the run's beginning."""
    minutes: MaybeFloat = None
    """Stop after so many minutes of this call; 10 if --updates is not given either."""
    resume: bool = False
    """Go on with a run that was begun before."""
    batch_size: MaybeInt = None
    """Rows an update; 6 if not given."""
    length: MaybeInt = None
    """Frames a row; 24 if not given. It should be longer than the window that attention looks back on."""
    learning_rate: MaybeFloat = None
    """The highest rate: it falls to zero at the end of the pictures, rises again, and falls slowly after 4,000 updates;
    3e-3 if not given."""
    end_share: MaybeFloat = None
    """Share of the rows drawn so that they hold an episode's end or a rare reward; 0.25 if not given."""
    pictures_first: MaybeInt = None
    """Updates at the beginning that only learn to paint single frames, not their order; 1500 if not given, 200 after
    --grow."""
    save_every: MaybeInt = None
    """Updates between checkpoints, the most that a crash can cost; 200 if not given."""
    report_every: int = 1000
    """Updates between open-loop videos in TensorBoard."""


def run(args: Train) -> None:
    """Train, and say where things are."""
    names = ("updates", "minutes", "batch_size", "length", "learning_rate", "save_every", "report_every", "chunks")
    require_positive(args, *names)
    require_out_folder("--out", args.out)
    from worldmodel.envs.store import EpisodeStore

    store = EpisodeStore.open(args.data)
    _refuse_overwriting(args)
    _refuse_twice(args)
    update = train(args, store)
    print(
        f"{args.out} holds a world model after {update} updates; watch it with "
        f"`tensorboard --logdir {args.out / 'tensorboard'}`.\nNext: worldmodel dream --run {args.out}"
    )


def go_on(args: Train) -> str:
    """What to do after Ctrl-C."""
    if not (args.out / "trainer.pt").exists():
        return "Nothing was learned yet: the same command begins again."
    return f"{args.out} is saved; give --resume to go on."


def train(args: Train, store: EpisodeStore) -> int:
    """Train as `args` say; returns how many updates the run has now."""
    import torch

    from worldmodel.checkpoint import load_model, save_config
    from worldmodel.envs.contexts import choose_contexts, save_contexts
    from worldmodel.envs.segments import FrameTable, Segments
    from worldmodel.envs.starts import CONTEXTS_FILE
    from worldmodel.idle import idle
    from worldmodel.model import WorldModel
    from worldmodel.scripts.report import Reporter
    from worldmodel.training import TrainConfig, Trainer

    device = choose_device(args.device)
    # What was begun is gone on with, also if it was killed before the first checkpoint.
    resuming = args.resume and (args.out / "trainer.pt").exists()
    record = read_record(args.out) if args.resume else {}
    seed = begun_seed(args, record, args.out)
    grown_from = _grown_from(args, record)
    config = _resumed_config(args, store) if args.resume else _new_config(args, store)
    if silent := idle((setting.partition("=")[0].strip() for setting in args.settings), config):
        raise UserError(silent)
    inherited = _inherited(grown_from) if grown_from and not record else {}
    options = {**inherited, **record.get("options", {}), **given(args, TrainConfig)}
    training = _override(TrainConfig(), [f"{TRAINING}{name}={value}" for name, value in options.items()], TRAINING)
    if args.resume:
        _refuse_changes(args, training, TRAINING)
    training = _override(training, _settings(args, TRAINING), TRAINING)
    options |= dict(setting.removeprefix(TRAINING).split("=", 1) for setting in _settings(args, TRAINING))
    table = FrameTable.from_store(store)
    if (longest := max(table.begin[1:] - table.begin[:-1])) < 2:
        raise UserError(f"the episodes in {args.data} have no steps to learn from (the longest has {longest} frame)")

    torch.manual_seed(seed)
    try:
        if grown_from is not None and not resuming:
            model = load_model(grown_from, device).grow()
        else:
            model = WorldModel(config).to(device)
    except ValueError as error:
        raise UserError(f"such a model cannot be built: {error}") from error
    if any(modality.kind == "vector" for modality in config.observation.modalities):
        model.frame_stage.patches.fit(torch.from_numpy(table.frames).to(device))
    batches = Segments.for_training(table, config, training, seed=seed)
    try:
        trainer = Trainer(model, batches, args.out, training, seed=seed)
    except ValueError as error:
        raise UserError(f"it cannot be trained so: {error}") from error
    # Before the config: what is found with a config but no checkpoint is begun again, and must know from which run.
    _write_record(args, seed, _preset(args, record, grown_from), options, grown_from)
    if resuming:
        trainer.resume()
    else:
        save_contexts(args.out / CONTEXTS_FILE, choose_contexts(table, seed=seed))
        save_config(args.out, config, store.environment)
    minutes = DEFAULT_MINUTES if args.updates is None and args.minutes is None else args.minutes
    trainer.train(updates=args.updates, minutes=minutes, report=Reporter(table, seed), report_every=args.report_every)
    return trainer.update


def read_record(run: Path) -> dict[str, Any]:
    """What `training.json` says; nothing if the run has none.

    Raises:
        UserError: it is damaged.
    """
    path = run / RECORD_FILE
    try:
        content = json.loads(path.read_text())
        record = {"data": str(content["data"]), "preset": content["preset"], "options": dict(content["options"])}
        record |= {"seed": int(content["seed"])} if "seed" in content else {}  # older ones do not say
        return record | ({"grow": str(content["grow"])} if "grow" in content else {})
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): delete it, and give the options of training again") from error


def _write_record(args: Train, seed: int, preset: str, options: dict[str, Any], grown_from: Path | None) -> None:
    from worldmodel.checkpoint import write_atomically

    # Relative, so that a run and its data can be moved together.
    data = os.path.relpath(args.data, args.out)
    content = {"format_version": 1, "data": data, "seed": seed, "preset": preset, "options": options}
    if grown_from is not None:
        content["grow"] = os.path.relpath(grown_from, args.out)
    write_atomically(args.out / RECORD_FILE, json.dumps(content, indent=1).encode())


def _refuse_overwriting(args: Train) -> None:
    from worldmodel.checkpoint import CONFIG_FILE, MODEL_FILE

    trained = [name for name in ("trainer.pt", MODEL_FILE) if (args.out / name).exists()]
    if trained and not args.resume:
        raise UserError(f"{args.out} holds a trained run already: give --resume to go on with it, or another --out")
    if args.resume and not (args.out / CONFIG_FILE).exists():
        raise UserError(f"{args.out} holds no run that could be resumed: train without --resume")


def _new_config(args: Train, store: EpisodeStore) -> ModelConfig:
    from worldmodel.envs.spaces import action_spec, observation_spec
    from worldmodel.presets import preset

    if args.grow is not None:
        return _grown_config(args, args.grow, store)
    try:
        observation, action = observation_spec(store.observation_space), action_spec(store.action_space)
        config = preset(args.preset or "tiny", observation, action)
        config = dataclasses.replace(config, frame=dataclasses.replace(config.frame, **_frame_options(args)))
    except ValueError as error:
        raise UserError(str(error)) from error
    return _override(config, _settings(args))


def _grown_config(args: Train, run: Path, store: EpisodeStore) -> ModelConfig:
    """What the model of `run` grows to, if that fits the episodes and nothing that is asked for contradicts it."""
    from worldmodel.checkpoint import load_config
    from worldmodel.envs.spaces import action_spec, observation_spec
    from worldmodel.grow import grown_config

    for name in ("preset", "boundary", "chunks"):
        if getattr(args, name) is not None:
            raise UserError(f"a model that grows keeps its {name}: leave --{name} out, or train without --grow")
    if settings := _settings(args):
        raise UserError(f"a model that grows keeps its parts: leave --set {settings[0]} out, or train without --grow")
    config = load_config(run)
    try:
        grown = grown_config(config)
        observation, action = observation_spec(store.observation_space), action_spec(store.action_space)
    except ValueError as error:
        raise UserError(f"the model of {run} cannot grow: {error}") from error
    if observation != grown.observation:
        raise UserError(
            f"{run} has seen observations of the shape {config.observation.shape} and grows to "
            f"{grown.observation.shape}, but those of {args.data} have {observation.shape}: give --grow a run on half "
            f"their height and width"
        )
    if action != grown.action:
        raise UserError(
            f"{run} has learned the actions {config.action}, but those of {args.data} are {action}: give --grow a run "
            f"with the same actions"
        )
    return grown


def _grown_from(args: Train, record: dict[str, Any]) -> Path | None:
    """The run that this one goes on from, if it is not begun anew."""
    if not args.resume:
        return args.grow
    begun = args.out / record["grow"] if "grow" in record else None
    if args.grow is not None and (begun is None or args.grow.resolve() != begun.resolve()):
        raise UserError(f"{args.out} was not begun with --grow {args.grow}: leave it out to resume")
    return begun


def _inherited(run: Path) -> dict[str, Any]:
    """How the run that this one grows from was trained, but for what came to its end there."""
    options = read_record(run).get("options", {})
    ended = ("pictures_first", "stride_first", "anneal")
    return {name: value for name, value in options.items() if name not in ended} | {"pictures_first": GROWN_PICTURES}


def _preset(args: Train, record: dict[str, Any], grown_from: Path | None) -> str:
    """The name of the model's size: that of the run's beginning, or of the run it has grown from."""
    begun = record or (read_record(grown_from) if grown_from is not None else {})
    return begun.get("preset", args.preset or "tiny")


def _resumed_config(args: Train, store: EpisodeStore) -> ModelConfig:
    """The run's own config, if nothing that is asked for contradicts it."""
    from worldmodel.checkpoint import load_config, load_environment

    config, environment = load_config(args.out), load_environment(args.out)
    for key in ("id", "wrappers", "observation_space", "action_space"):
        if environment.get(key) != store.environment.get(key):
            raise UserError(
                f"{args.out} was trained with {key} = {environment.get(key)!r}, but {args.data} has "
                f"{store.environment.get(key)!r}: resume with data of the same environment"
            )
    asked = {"preset": args.preset, **_frame_options(args)}
    begun = {"preset": read_record(args.out).get("preset", args.preset), **dataclasses.asdict(config.frame)}
    for name, value in asked.items():
        if value is not None and value != begun[name]:
            raise UserError(f"{args.out} was begun with --{name} {begun[name]}, not {value}: leave it out to resume")
    _refuse_changes(args, config)
    return config


def _settings(args: Train, prefix: str = "") -> list[str]:
    """Those --set that are about training, or those that are about the model."""
    begins = (TRAINING, TRAINING.removesuffix(".") + "=")
    return [setting for setting in args.settings if setting.startswith(begins) == (prefix == TRAINING)]


def _override(config: Config, settings: Sequence[str], prefix: str = "") -> Config:
    from worldmodel.overrides import override

    try:
        return override(config, *settings, prefix=prefix, beside=() if prefix else (TRAINING.removesuffix("."),))
    except ValueError as error:
        raise UserError(str(error)) from error


def _refuse_changes(args: Train, begun: Any, prefix: str = "") -> None:
    """A resumed run stays what it was begun as; --set may say so again."""
    for setting in _settings(args, prefix):
        if _override(begun, [setting], prefix) != begun:
            raise UserError(f"{args.out} was begun without --set {setting}: leave it out to resume")


def _refuse_twice(args: Train) -> None:
    """The same setting as an option and by --set: which of the two was meant?"""
    from worldmodel.training import TrainConfig

    names = {f"frame.{name}": name for name in _frame_options(args)}
    names |= {f"{TRAINING}{name}": name for name in given(args, TrainConfig)}
    for setting in args.settings:
        if option := names.get(setting.partition("=")[0]):
            raise UserError(f"--{option.replace('_', '-')} and --set {setting} are the same setting: give one of them")


def _frame_options(args: Train) -> dict[str, Any]:
    return {name: v for name in ("boundary", "chunks") if (v := getattr(args, name)) is not None}
