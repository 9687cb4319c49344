"""The command `worldmodel`: one subcommand a file, and what becomes of errors.

What the user can put right is one sentence on stderr and exit code 2, without a traceback; Ctrl-C is exit code 130 and
a sentence that says how to go on.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated

import tyro

from worldmodel.errors import UserError
from worldmodel.kernels.backend import MissingBackend
from worldmodel.scripts import collect, demo, dream, evaluate, import_npz, show, train
from worldmodel.scripts.options import require_seed

Command = (
    Annotated[collect.Collect, tyro.conf.subcommand("collect")]
    | Annotated[import_npz.ImportNpz, tyro.conf.subcommand("import")]
    | Annotated[train.Train, tyro.conf.subcommand("train")]
    | Annotated[dream.Dream, tyro.conf.subcommand("dream")]
    | Annotated[evaluate.Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[show.Show, tyro.conf.subcommand("show")]
    | Annotated[demo.Demo, tyro.conf.subcommand("demo")]
)
MODULES: dict[type, ModuleType] = {
    collect.Collect: collect,
    import_npz.ImportNpz: import_npz,
    train.Train: train,
    dream.Dream: dream,
    evaluate.Evaluate: evaluate,
    show.Show: show,
    demo.Demo: demo,
}
DESCRIPTION = """H-Net world models: collect from a Gymnasium environment, train a world model on what was seen, train
an agent inside the model's imagination, and see how both do. `worldmodel demo` shows the whole way in 6 minutes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words behind `worldmodel`; those of the process if left out.

    Returns:
        The exit code. (Unknown options and --help leave by `SystemExit`, as tyro does it.)
    """
    args = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="worldmodel",
        description=DESCRIPTION,
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    module = MODULES[type(args)]
    try:
        require_seed(args)
        module.run(args)
    except (UserError, MissingBackend) as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail(f"stopped. {module.go_on(args)}", 130)
    except OSError as error:  # no such folder, no permission, a full disk: its words name the file
        return _fail(str(error), 2)
    return 0


def entry_point() -> None:
    """What the command `worldmodel` calls."""
    warnings.showwarning = _show_warning
    sys.exit(main())


def _fail(sentence: str, code: int) -> int:
    print(f"worldmodel: {' '.join(sentence.split())}", file=sys.stderr)  # libraries' messages bring line breaks
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A sentence, without the line of our code that it came from."""
    print(f"worldmodel: warning: {message}", file=sys.stderr)
