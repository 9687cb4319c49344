"""An imagined step as a CUDA graph: one launch in place of several hundred.

A dream's step is many small kernels, each shorter than it takes the CPU to ask for it. A graph asks for all of them at
once. It reads and writes the same places in memory every time, so what comes in is copied there, and what goes out is
copied away: states stay values, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.model import WorldModel
from worldmodel.outputs import StepOutput
from worldmodel.router import Router
from worldmodel.state import DreamState

WARM_UP = 3  # steps before the capture, in which kernels are compiled and libraries take their workspaces

Result = tuple[DreamState, StepOutput]


class CapturedImagination:
    """`model.imagine` for `batch_size` rows, captured once and replayed at every call.

    The graph reads the weights where they are: training that updates them in place is seen, a model that was moved to
    another device or got new tensors needs a new capture. Backends and autocast stay as they were at the capture.

    Args:
        model: on a GPU, with boundaries at a fixed stride and no router in the causal stage: where a step has to ask
            what the network said before it knows how to go on, no graph can hold it.
        batch_size: rows of every call.
        greedy: as in `model.imagine`.

    Raises:
        UserError: the model cannot be captured; the message says why.
    """

    def __init__(self, model: WorldModel, batch_size: int, greedy: bool = False) -> None:
        if not model.fixed_starts:
            raise UserError(
                "a step whose frames have chunks of their own cannot be captured: how many is known only once they are "
                "dreamed; use model.imagine, or a model whose boundary is 'stride' and that follows no patches"
            )
        if any(isinstance(part, Router) for part in model.causal_stage.modules()):
            raise UserError(
                "a step with extra boundaries in a causal stage cannot be captured: whether the main network runs "
                "is known only once the router has spoken; use model.imagine, or a model whose causal.N.extra are 0"
            )
        if model.core is not None and not model.core.alike:
            raise UserError(
                "a step whose tokens get loops of their own cannot be captured: how many is known only once they run; "
                "use model.imagine, or a model whose loops have neither certainty, budget nor exit"
            )
        self.batch_size = batch_size
        action = model.config.action
        dtype = torch.float32 if action.kind == "box" else torch.int64
        self._state = model.initial_state(batch_size).clone()  # nothing in it shares memory
        self._action = torch.zeros(batch_size, *action.shape, dtype=dtype, device=model.device)
        self._result, self._replay = self._capture(
            lambda: model.imagine(self._state, self._action, greedy=greedy), model.device
        )

    def __call__(self, state: DreamState, action: Tensor) -> Result:
        """As `model.imagine`; what it returns is the caller's to keep.

        Raises:
            ValueError: there are more or fewer rows than were captured, or the state is another model's.
        """
        into = self._state.tensors
        if state.batch_size != self.batch_size or len(action) != self.batch_size:
            raise ValueError(
                f"captured for {self.batch_size} rows, not for a state of {state.batch_size} and {len(action)} actions"
            )
        if {n: t.shape for n, t in state.tensors.items()} != {n: t.shape for n, t in into.items()}:
            raise ValueError("this state belongs to another model than the one that was captured")
        _copy(list(into.values()), [state.tensors[name] for name in into])
        self._action.copy_(action)
        self._replay()
        new, output = self._result
        states, fields = new.tensors, output.tensors
        results = [*states.values(), *fields.values()]
        kept = [torch.empty_like(t) for t in results]
        _copy(kept, results)
        return DreamState(dict(zip(states, kept))), StepOutput(**dict(zip(fields, kept[len(states) :])))

    imagine = __call__  # so that it stands in for a model

    def _capture(self, run: Callable[[], Result], device: torch.device) -> tuple[Result, Callable[[], None]]:
        """The tensors that hold the results, and what fills them anew from the inputs' buffers."""
        if device.type != "cuda":
            raise UserError(f"a step can be captured on a GPU only, and the model is on {device}: use model.imagine")
        # A weight that autocast casts once and keeps would be gone at the replay.
        autocast = torch.autocast(
            "cuda",
            dtype=torch.get_autocast_dtype("cuda"),
            enabled=torch.is_autocast_enabled("cuda"),
            cache_enabled=False,
        )
        with torch.cuda.device(device), autocast:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as one that pins batches, may go on with their own work meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = run()
        return result, graph.replay


def _copy(places: list[Tensor], values: list[Tensor]) -> None:
    """Few launches for many tensors: one for all of a type."""
    for dtype in {t.dtype for t in places}:
        of_type = [i for i, t in enumerate(places) if t.dtype == dtype]
        torch._foreach_copy_([places[i] for i in of_type], [values[i] for i in of_type])
