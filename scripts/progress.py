"""The stages of a demo: which are done, and how long each took, also over interruptions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError

PROGRESS_FILE = "demo.json"


class Progress:
    """Which stages of a demo are done and how long each took, kept in a file.

    Args:
        out: the run folder.
        products: of each stage, in order: the file in the run folder that is there when the stage is done.
        identity: what the demo is of; a folder with another one is refused.

    Raises:
        UserError: the folder holds something else, or its progress file is damaged.
    """

    def __init__(self, out: Path, products: dict[str, str], identity: dict[str, Any]) -> None:
        self.out, self.products, self.path = out, products, out / PROGRESS_FILE
        self.content = {"format_version": 1, **identity, "seconds": {}, "done": [], "running": None}
        if not self.path.exists():
            if (out / "config.json").exists():
                raise UserError(f"{out} holds a run that is no demo: give another --out")
            return
        try:
            self.content |= json.loads(self.path.read_text())
            found = {key: self.content[key] for key in identity}
            if self.content["running"]:  # it was killed: its time is what its files say
                name, since = self.content["running"]
                newest = max((p.stat().st_mtime for p in out.rglob("*") if p.is_file()), default=since)
                self._add(name, newest - since)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is damaged ({error!r}): delete {out} and run the demo again") from error
        if found != identity:
            was = ", ".join(f"{key} {value}" for key, value in found.items())
            raise UserError(f"{out} holds a demo with {was}: give another --out, or delete it")

    @property
    def minutes(self) -> dict[str, float]:
        """Of each stage, up to now."""
        seconds = dict(self.content["seconds"])
        if self.content["running"]:
            name, since = self.content["running"]
            seconds[name] = seconds.get(name, 0.0) + time.time() - since
        return {name: value / 60 for name, value in seconds.items()}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[float | None]:
        """Say what is going on and take the time.

        Yields:
            Minutes that interrupted calls have spent on it, or None if it is done.
        """
        number = f"[{list(self.products).index(name) + 1}/{len(self.products)}]"
        if name in self.content["done"]:
            if not (self.out / self.products[name]).exists():
                raise UserError(f"{self.out / self.products[name]} is gone: delete {self.out} and run the demo again")
            print(f"{number} {name}: done before")
            yield None
            return
        print(f"{number} {name}: {what}", flush=True)
        began, self.content["running"] = time.monotonic(), [name, time.time()]
        self._write()
        try:
            yield self.content["seconds"].get(name, 0.0) / 60
            self.content["done"].append(name)
        finally:
            self._add(name, time.monotonic() - began)
            self._write()

    def _add(self, name: str, seconds: float) -> None:
        self.content["seconds"][name] = self.content["seconds"].get(name, 0.0) + max(0.0, seconds)
        self.content["running"] = None

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1))
        part.replace(self.path)
