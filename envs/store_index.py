"""The index of an episode store, and how a store's files come to their place whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError

FORMAT_VERSION = 1
CODECS = ("x264rgb", "npz")
INDEX_FIELDS = ("name", "length", "terminated", "truncated", "return", "seed")  # of each episode


def read_index(root: Path) -> dict[str, Any]:
    """The environment spec, the codec, the entries of the episodes, and the stamp of what was read.

    Raises:
        UserError: there is no index, it is damaged, or a newer version wrote it.
    """
    path = root / "index.json"
    try:
        known = stamp(root)  # before reading: what is written meanwhile is then noticed
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{root} is not an episode store: it has no index.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read, it may be cut off: {error}") from error
    try:
        if data["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {data['format_version']}; this worldmodel reads {FORMAT_VERSION}"
            )
        if data["codec"] not in CODECS:
            raise UserError(f"{path} names the codec {data['codec']!r}; known are {' and '.join(CODECS)}")
        if absent := {"id", "observation_space", "action_space"} - set(data["environment"]):
            raise KeyError(*sorted(absent))
        return {
            "environment": data["environment"],
            "codec": data["codec"],
            "stamp": known,
            "episodes": [{field: entry[field] for field in INDEX_FIELDS} for entry in data["episodes"]],
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not the index of an episode store: {error!r}") from error


def write_index(root: Path, environment: dict[str, Any], codec: str, episodes: list[dict[str, Any]]) -> None:
    """Replace the index in one step."""
    data = {"format_version": FORMAT_VERSION, "environment": environment, "codec": codec, "episodes": episodes}
    put(root / "index.json", json.dumps(data).encode())


def stamp(root: Path) -> tuple[int, int]:
    """What is another one after every writing of the index: it is a new file each time."""
    status = (root / "index.json").stat()
    return status.st_ino, status.st_mtime_ns


def put(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: a reader finds the old one or the new one, whole.

    Nothing waits for the disk, which would halve the speed of collecting; a power cut costs the last few episodes.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
