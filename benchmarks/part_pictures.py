"""Pictures of single parts of trained models: the padding, what a part is worth to its model, masks.

`benchmarks/hnet_pictures.py` draws them from the ablation's runs.

Shape suffixes: A actions, N entries of a side vector, T frames, R rows and C columns of patches.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from code_length import bits_a_frame
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.envs.chunk_maps import patch_order
from worldmodel.envs.pictures import to_rgb
from worldmodel.envs.segments import FrameTable
from worldmodel.model import WorldModel
from worldmodel.seeing import see_loose
from worldmodel.side import Widening

BLUE, ORANGE = "#0072b2", "#d55e00"


# ---- the padding ----------------------------------------------------------------------------------------------------


def draw_paddings(model: WorldModel, path: Path) -> None:
    """What every widening appends to a token: a row for each action that may have led to the frame, entries across."""
    widenings = [(name, module) for name, module in model.named_modules() if isinstance(module, Widening)]
    figure = Figure(figsize=(9.6, 0.3 + 1.7 * len(widenings)), dpi=160, layout="constrained")
    for axes, (name, widening) in zip(figure.subplots(len(widenings), 1, squeeze=False)[:, 0], widenings):
        where = "into the main network" if "inner" in name else "into the causal stage"
        _draw_padding(axes, widening, where)
    figure.savefig(path)


def _draw_padding(axes: Axes, widening: Widening, where: str) -> None:
    assert widening.action is not None and not widening.added
    of_action = widening.action.weight.detach().T  # a one-hot picks a row; the last one is of no action at all
    padding_AN = torch.cat([of_action, widening.rest.detach().expand(len(of_action), -1)], dim=1).numpy()
    (A, N), said = padding_AN.shape, of_action.shape[1]
    most = np.abs(padding_AN).max()
    image = axes.imshow(padding_AN, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.axvline(said - 0.5, color="black", linewidth=1.5)
    axes.set_yticks(range(A), [*map(str, range(A - 1)), "none"], fontsize=7)
    axes.set_ylabel("action")
    axes.set_title(f"{where}: {said} entries of the action, {N - said} learned", fontsize=10)
    axes.figure.colorbar(image, ax=axes, pad=0.01)


# ---- what a part is worth to its model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part that can be silenced: it adds what its parameters make of something, and nothing if they are zeros.

    Attributes:
        variant: the ablation's run that has it.
        parameters: patterns of their names.
    """

    variant: str
    parameters: tuple[str, ...]


MAIN = "causal_stage.inner.stack.norm.weight"  # of the last norm
RESIDUAL = "causal_stage.residual.weight", "causal_stage.residual.bias"
PARTS = {
    "the action in both paddings": Part("plain", ("*.widen.action.weight",)),
    "- in that of the causal stage": Part("plain", ("causal_stage.widen.action.weight",)),
    "- in that of the main network": Part("plain", ("causal_stage.inner.widen.action.weight",)),
    "the learned rest of both": Part("plain", ("*.widen.rest",)),
    "the parallel path": Part("path", ("causal_stage.inner.widen.path.weight",)),
    "the linear residual": Part("plain", RESIDUAL),
    "the Mamba-2 residual": Part("residual_mamba", RESIDUAL),
    "the attention residual": Part("residual_attention", RESIDUAL),
    "the main network": Part("plain", (MAIN,)),
    "- beside an attention residual": Part("residual_attention", (MAIN,)),
    "- without any residual": Part("residual_none", (MAIN,)),
    "what is cut off": Part("cut_off", ("causal_stage.recall.weight",)),
    "value embeddings": Part("values", ("*.embed_value.weight",)),
    "lengths of chunks": Part("extra_lengths", ("causal_stage.embed_length",)),
}


def silenced(model: WorldModel, patterns: tuple[str, ...]) -> WorldModel:
    """The same model, and zeros in the parameters whose names match.

    Raises:
        ValueError: nothing matches a pattern.
    """
    other = copy.deepcopy(model)
    names = dict(other.named_parameters())
    for pattern in patterns:
        if not (found := fnmatch.filter(names, pattern)):
            raise ValueError(f"no parameter of this model is called {pattern!r}")
        for name in found:
            names[name].data.zero_()
    return other


def draw_parts(models: Mapping[str, WorldModel], table: FrameTable, path: Path) -> dict[str, tuple[float, float]]:
    """Bits of a frame's code, foretold by the whole model and by the same one with a part silenced.

    Returns:
        Both, by the part; those whose model is not there are absent.
    """
    measured, whole = dict[str, tuple[float, float]](), dict[str, float]()
    for label, part in PARTS.items():
        if part.variant not in models:
            continue
        model = models[part.variant]
        if part.variant not in whole:
            whole[part.variant] = bits_a_frame(model, table)["code"]
        without = bits_a_frame(silenced(model, part.parameters), table)["code"]
        measured[label] = whole[part.variant], without
    figure = Figure(figsize=(9.6, 0.8 + 0.34 * len(measured)), dpi=160, layout="constrained")
    axes = figure.subplots()
    for row, (all_of_it, without) in enumerate(measured.values()):
        axes.plot([all_of_it, without], [row, row], color="#bbbbbb", linewidth=3, zorder=1)
        axes.scatter([all_of_it], [row], color=BLUE, zorder=2, label="the whole model" if row == 0 else None)
        axes.scatter([without], [row], color=ORANGE, zorder=2, label="that part silenced" if row == 0 else None)
        axes.annotate(f"{without:.1f}", (without, row), (6, -3), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(measured)), list(measured), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("bits to foretell a frame's code")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)
    return measured


# ---- masks ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_masks(model: WorldModel, frames: np.ndarray, path: Path) -> None:
    """Frames, what the encoder gets to see of them, and what is painted from that.

    Args:
        model: that hides patches in training.
        frames: `(T, H, W, 3)` uint8.
        path: of the new PNG.
    """
    stage, key = copy.deepcopy(model.frame_stage).train(), torch.tensor(0)
    true = torch.from_numpy(frames)
    patches = stage.patches(true)
    hidden_TP = (stage.look(patches, None, key) != stage.look(patches)).any(-1).numpy()
    _, chunks, posterior, _ = see_loose(stage, true, key)
    uniform = torch.full((*posterior.shape[:2], model.latent.draws), 0.5)
    painted = stage.patches.inverse(stage.decode(model.latent.infer(posterior, uniform), None, chunks))
    order_RC, side = patch_order(stage.patches), stage.patches.ph
    seen = frames.copy()
    for frame, hidden_P in zip(seen, hidden_TP):
        covered = hidden_P[order_RC].repeat(side, axis=0).repeat(side, axis=1)
        frame[covered[: frame.shape[0], : frame.shape[1]]] = 127
    rows = {
        "the frame": frames,
        "what is seen of it": seen,
        "painted": to_rgb(painted.numpy(), model.config.observation),
    }
    figure = Figure(figsize=(0.4 + 1.6 * len(frames), 1.65 * len(rows)), dpi=160, layout="constrained")
    for axes_T, (label, row) in zip(figure.subplots(len(rows), len(frames), squeeze=False), rows.items()):
        for axes, frame in zip(axes_T, row):
            axes.imshow(frame, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        axes_T[0].set_ylabel(label, fontsize=10)
    figure.savefig(path)
