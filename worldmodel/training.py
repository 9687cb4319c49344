"""The training loop: batches in, a run folder out.

Everything random in an update follows from (seed, number of the update), so N updates, a restart and N more give the
bits of 2N in one go. The weights handed out are a running average, which does what a rate that decays to zero does
without having to know when the training will end.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from worldmodel.batch import Batch
from worldmodel.checkpoint import MODEL_FILE, remove_unfinished, save_weights, write_atomically
from worldmodel.errors import UserError
from worldmodel.frames import FrameStage
from worldmodel.interrupt import uninterrupted
from worldmodel.losses import picture_loss, world_model_loss
from worldmodel.model import WorldModel
from worldmodel.router import Threshold
from worldmodel.train_config import TrainConfig

TRAINER_FILE = "trainer.pt"
TRAINER_FORMAT = 3  # 1 and 2 listed the optimizer's state in another order of the parameters
FIXED = 200  # updates in which the quantiles of routers come to rest, once their scores stand still
SHOWN = ("loss/reconstruction", "latent/kl")  # beside the bar


class Batches(Protocol):
    """An endless source of segments that can be put back where it was (`worldmodel.envs.segments.Segments`).

    `settle` tells it that frames are coded the same forever, so that it may come with their codes from then on.
    """

    def __iter__(self) -> Iterator[Batch]: ...
    def settle(self, stage: FrameStage) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """Trains one model into one run folder.

    Args:
        model: trained in place; the run folder gets the average of its weights.
        batches: where the segments come from.
        run: the run folder; its `config.json` is written by the caller.
        config: see `TrainConfig`.
        seed: of all noise.

    Raises:
        ValueError: chunks are to be handed over to a router, but the model has none, or it does not learn by then;
            targets are to move, but it is not said in how many updates; or the past is to be learned, but it is not
            seen, or nothing ever rests.
    """

    def __init__(
        self, model: WorldModel, batches: Batches, run: str | Path, config: TrainConfig | None = None, seed: int = 0
    ) -> None:
        self.model, self.batches, self.run, self.seed = model, batches, Path(run), seed
        self.config = config or TrainConfig()
        self.update = 0
        if not self.config.anneal and (moving := model.config.first_targets):
            raise ValueError(f"{moving[0]} is where a target begins: say with training.anneal when it arrives")
        if self.config.past_first and not model.frame_stage.learns_order:
            raise ValueError(
                "training.past_first is of an encoder that learns from the order of frames: switch on frame.sees_past "
                "or time.boundary=learned"
            )
        if self.config.past_first and self.rests_at is None:
            raise ValueError(
                "training.past_first says when an encoder comes to rest behind the pictures, which it never does "
                "without training.settle=true and training.pictures_first above 0"
            )
        if self.config.stride_first:
            model.frame_stage.cutting.hold_stride(True)
            if self.rests_at is not None and self.config.stride_first >= self.rests_at:
                raise ValueError(
                    f"chunks are handed over to the router at update {self.config.stride_first}, but it rests from "
                    f"update {self.rests_at} on, and has to learn before: choose training.stride_first below, or "
                    "training.settle=false"
                )
        self.parameters = list(model.parameters())
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.last: tuple[Batch, Tensor] | None = None  # what the last update saw, and its noise
        self.parts, self.averaged_parts = _parts_of(model), _parts_of(self.averaged)
        # Matrices decay; norms, biases, A_log, D, dt_bias and learned vectors (fewer than two axes) do not.
        decays = (self.config.frame_decay, self.config.weight_decay)
        groups = [
            *(
                {"params": [p for p in part if p.dim() >= 2], "weight_decay": decay}
                for part, decay in zip(self.parts.values(), decays, strict=True)
            ),
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=self.config.betas, fused=True)

    def train(
        self,
        *,
        updates: int | None = None,
        minutes: float | None = None,
        report: Callable[[WorldModel, SummaryWriter, int], None] | None = None,
        report_every: int = 1000,
        progress: bool = True,
    ) -> None:
        """Train until update number `updates` is done or `minutes` have passed, whichever comes first.

        Args:
            updates: counted from the run's beginning, so a resumed run stops where an unbroken one would.
            minutes: of this call.
            report: called with the averaged model every `report_every` updates, to draw what it dreams.
            progress: show a bar.

        Raises:
            UserError: a loss is not finite. The batch lies beside the checkpoint, which stays the last good one.
        """
        if updates is None and minutes is None:
            raise ValueError("say when to stop: updates, minutes or both")
        device = self.model.device
        began, frames, since = time.monotonic(), 0, time.monotonic()
        # What a killed run had drawn beyond its last checkpoint is drawn again.
        writer = SummaryWriter(str(self.run / "tensorboard" / "model"), purge_step=self.update + 1)
        bar = tqdm(total=updates, initial=self.update, unit="update", desc="train", disable=not progress)
        source = iter(self.batches)
        self.model.train()
        try:
            while updates is None or self.update < updates:
                if minutes is not None and time.monotonic() - began > 60 * minutes:
                    break
                with uninterrupted():
                    batch = next(source).to(device)
                    notes = self.step(batch)
                frames += batch.index.numel()
                bar.update()
                if self.update % self.config.log_every == 0:
                    notes["speed/frames_per_second"] = torch.tensor(frames / (time.monotonic() - since))
                    frames, since = 0, time.monotonic()
                    for name, value in notes.items():
                        writer.add_scalar(name, value.item(), self.update)
                    shown = {n.split("/")[1]: f"{notes[n]:.3g}" for n in SHOWN if n in notes}
                    bar.set_postfix(shown)
                if self.update % self.config.save_every == 0:
                    self.save()
                if report is not None and self.update % report_every == 0:
                    report(self.averaged_model(), writer, self.update)
                    since = time.monotonic()
            self.save()
        except KeyboardInterrupt:
            self.save()
            raise
        finally:
            bar.close()
            writer.close()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; returns what `world_model_loss` notes, and the gradient's norm."""
        rows = torch.arange(batch.index.shape[0], device=batch.index.device)
        key = (rows << 32) + self.seed * 1_000_003 + self.update
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.update)
        self._set_targets()
        self._settle()
        if self.update < self.config.pictures_first:
            loss, notes = picture_loss(self.model, batch, self.config.losses, key=key)
        else:
            loss, notes = world_model_loss(self.model, batch, self.config.losses, key=key, generator=generator)
        if not torch.isfinite(loss):
            self._stop_on_nan(batch, notes)
        self.optimizer.zero_grad()
        loss.backward()
        # The painter and the rest by themselves: a hard sequence must not slow the learning of pictures.
        for name, part in self.parts.items():
            notes[f"gradient/{name}"] = torch.nn.utils.clip_grad_norm_(part, self.config.clip)
            if not torch.isfinite(notes[f"gradient/{name}"]):
                self._stop_on_nan(batch, notes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.config.share_of_the_rate(self.update)
        self.optimizer.step()
        self.update += 1
        for name, part in self.parts.items():
            # A plain average at first, so that the start is forgotten soon. What learns no pictures starts behind them.
            had = self.update - (0 if name == "frame_stage" else self.config.pictures_first)
            if had > 0:
                decay = min(self.config.average, had / (had + 10))
                with torch.no_grad():
                    torch._foreach_lerp_(self.averaged_parts[name], part, 1 - decay)
        self.last = batch, key
        return notes

    def _set_targets(self) -> None:
        """By the number of the update alone, so that a resumed run goes on as an unbroken one."""
        config = self.config
        if config.anneal:
            # Each target moves while its stage learns; that of the chunks has arrived before they settle.
            frames = config.anneal if self.rests_at is None else min(config.anneal, self.rests_at)
            behind = max(0, self.update - config.pictures_first)
            self.model.anneal(frames=self.update / frames, causal=behind / config.anneal)
        if config.stride_first:
            self.model.frame_stage.cutting.hold_stride(self.update < config.stride_first)

    @property
    def rests_at(self) -> int | None:
        """The update from which on frames are cut and coded the same forever, None if they never are.

        Behind the pictures, but where frames are coded by what those before them have taught: that is not in the
        pictures, and has yet to be learned.
        """
        config = self.config
        if not (config.settle and config.pictures_first):
            return None
        if config.past_first or not self.model.frame_stage.learns_order:
            return config.pictures_first + config.past_first
        return None

    def _settle(self) -> None:
        """Let what has been learned of single frames rest: what moves all the time cannot be foretold."""
        pictures, stage, rests_at = self.config.pictures_first, self.model.frame_stage, self.rests_at
        if self.update == rests_at == pictures:
            self.averaged.frame_stage.load_state_dict(stage.state_dict())  # the average has the same boundaries
        elif self.update == rests_at:  # at the full rate the average is the better one to rest with
            stage.load_state_dict(self._fitted().frame_stage.state_dict())
        if self.update in (pictures, rests_at):
            for router in stage.routers:
                router.passes.zero_()  # a frame counts as often as it occurs from now on: tau is found anew
        self._rest(self.update)

    def _rest(self, update: int) -> None:
        """Let stand still what does in this update."""
        if self.rests_at is None or update < self.rests_at:
            return
        for model in (self.model, self.averaged):
            model.frame_stage.settle()
            # How much may change in time is still on its way when frames come to rest.
            moving = self.config.anneal if model.config.time.changes_first else 0
            if update >= self.rests_at + moving + FIXED:
                model.frame_stage.fix()
        if self.model.frame_stage.fixed:
            self.batches.settle(self.model.frame_stage)

    def averaged_model(self) -> WorldModel:
        """A copy of the model with the averaged weights, in evaluation mode."""
        return copy.deepcopy(self._fitted())

    @torch.no_grad()
    def _fitted(self) -> WorldModel:
        """The averaged model, its routers' quantiles taken from its own view of the last batch.

        Those of the weights in training do not fit: with them there were 0 to 5 times the wanted chunks. All other
        buffers do.
        """
        if self.last is None:
            return self.averaged
        for mine, other in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            mine.copy_(other)
        routers = [module for module in self.averaged.modules() if isinstance(module, Threshold) and not module.still]
        for router in routers:
            router.passes.zero_()  # it takes in this batch whole, however often the model was handed out before
            router.train()  # but nothing else: no patch is hidden
        if routers:
            self.averaged(*self.last)
            self.averaged.eval()
        return self.averaged

    def save(self) -> None:
        """Write `trainer.pt`, then the averaged weights; each is whole or absent."""
        averaged = self._fitted().state_dict()
        content = {
            "format_version": TRAINER_FORMAT,
            "update": self.update,
            "seed": self.seed,
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "averaged": averaged,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(self.run / TRAINER_FILE, buffer.getvalue())
        save_weights(self.run, averaged)

    def resume(self) -> None:
        """Go on from the run's `trainer.pt`.

        Raises:
            UserError: it is missing or damaged, or does not belong to this model.
        """
        path = self.run / TRAINER_FILE
        if not path.is_file():
            raise UserError(f"{path} does not exist: there is nothing to resume, train without --resume")
        for name in (TRAINER_FILE, MODEL_FILE):
            remove_unfinished(self.run / name)
        try:
            content = torch.load(path, map_location=self.model.device, weights_only=True)
            if content["format_version"] != TRAINER_FORMAT:
                raise UserError(
                    f"{path} was written by another version of worldmodel, which laid the weights out differently: "
                    "dreams of the run go on working, but its training cannot; train into a new folder"
                )
            self._refuse_another_past(content["update"], content.get("config", {}))
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.averaged.load_state_dict(content["averaged"])
            self.batches.load_state_dict(content["batches"])
            self.update, self.seed = content["update"], content["seed"]
        except (RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]  # an empty file says nothing
            raise UserError(f"{path} cannot be resumed ({reason}): restore it, or train into a new folder") from error
        self._rest(self.update - 1)  # as the last update left it: the next batch may be one with known codes

    def _refuse_another_past(self, update: int, begun: dict[str, Any]) -> None:
        """What has come to its end cannot be given another one: it was learned, averaged and settled by then.

        Raises:
            UserError: names what was asked for.
        """
        ends = {"pictures_first": 0, "past_first": self.config.pictures_first, "stride_first": 0}
        for name, before in ends.items():
            now = getattr(self.config, name)
            was = begun.get(name, now)  # older ones do not say all of it
            if was != now and before + min(was, now) < update:
                raise UserError(
                    f"{self.run} is at update {update} and was trained with {name} {was}: it is too late for {now}, "
                    f"resume without it"
                )

    def _stop_on_nan(self, batch: Batch, notes: dict[str, Tensor]) -> None:
        wrong = [name for name, value in notes.items() if not torch.isfinite(value)]
        path = self.run / f"nan_batch_{self.update}.pt"
        buffer = io.BytesIO()
        torch.save(vars(batch), buffer)
        write_atomically(path, buffer.getvalue())
        raise UserError(
            f"update {self.update}: {', '.join(wrong)} is not finite; the batch is kept in {path} and the last good "
            f"checkpoint is untouched (look at the batch, or resume with a lower --learning-rate)"
        )


def _parts_of(model: WorldModel) -> dict[str, list[Tensor]]:
    """The parameters of the frame stage, and the others."""
    frame = {id(p) for p in model.frame_stage.parameters()}
    parts: dict[str, list[Tensor]] = {"frame_stage": [], "rest": []}
    for p in model.parameters():
        parts["frame_stage" if id(p) in frame else "rest"].append(p)
    return parts
