"""A file with the state of a computation, from which it resumes after an interruption.

It is written under another name, flushed to the disk and renamed: at any moment the file is
complete, the last or the one before. It is safetensors, with all that is no tensor as JSON in its
header: reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowvae.errors import InputError

__all__ = ["Checkpoint", "CheckpointError", "State", "code", "facts"]


FORMAT = "flowvae checkpoint 1"


class CheckpointError(InputError):
    """A file that is no checkpoint, or is one of something else."""


class State(NamedTuple):
    """How far a computation has come.

    Arguments:
        tensors: Its tensors by name.
        facts: What else there is to know, as JSON takes it; floats come back to the bit.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors whose name begins with a prefix, by the rest of the name."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


class Checkpoint:
    """The states of a fit and of the scoring of its models, in one file.

    `flowvae.fit` and `flowvae.evaluate` take one, begin where it says, and keep it up to date.

    Arguments:
        path: The file; its folder is made when it is first written.
        every: How long a computation goes on between two savings, s.
        stop: Asked between two steps; where it returns something true, the name of a signal
            say, the state is saved and KeyboardInterrupt raised, with that.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = Checkpoint(f"{folder}/run.safetensors")
        ...     first.put("sum", State({"total": torch.ones(2)}, {"terms": 3}))
        ...     first.save()
        ...     again = Checkpoint(f"{folder}/run.safetensors").get("sum")
        >>> again.facts, again.tensors["total"].tolist()
        ({'terms': 3}, [1.0, 1.0])
    """

    def __init__(
        self, path: str | Path, every: float = 60.0, stop: Callable[[], object] = lambda: False
    ) -> None:
        self.path, self.every, self.stop = Path(path), every, stop
        self.pending = False  # whether there is more than is written
        self._parts: dict[str, State] | None = None
        self._saved = time.monotonic()
        self._stop: object = False

    def get(self, part: str) -> State | None:
        """Returns the state of a part, or none.

        Raises:
            CheckpointError: There is a file, and it is no checkpoint.
            OSError: The system does not let it be read.
        """
        if self._parts is None:
            self._parts = _read(self.path)
        return self._parts.get(part)

    def put(self, part: str, state: State) -> None:
        """Sets the state of a part, which the next saving writes."""
        if self._parts is None:
            self._parts = {}
        self._parts[part] = state
        self.pending = True

    def due(self) -> bool:
        """Returns whether to call `keep`: it is time to save, or a stop was requested."""
        self._stop = self.stop()
        return bool(self._stop) or time.monotonic() - self._saved >= self.every

    def keep(self, part: str, state: State) -> None:
        """Saves a part's state.

        Raises:
            KeyboardInterrupt: A stop was asked for; the state is saved as far as it can be.
        """
        self.put(part, state)
        self._saved = time.monotonic()  # one that fails is tried again as late as one that works
        try:
            self.save()
        except OSError as error:
            reason = error.strerror or str(error)
            warnings.warn(
                f"cannot write the checkpoint {self.path} ({reason}): work from now on is "
                "lost if this process ends before a checkpoint can be written",
                RuntimeWarning,
                stacklevel=2,
            )
            self.pending = False  # its tensors are changed by the next step
        if self._stop:
            raise KeyboardInterrupt(self._stop)

    def save(self) -> None:
        """Writes the file.

        Raises:
            OSError: It cannot be written; the one before is left as it was.
        """
        parts = self._parts or {}
        tensors = {
            f"{part}:{name}": tensor.detach().contiguous().cpu()
            for part, state in parts.items()
            for name, tensor in state.tensors.items()
        }
        known = {part: dict(state.facts) for part, state in parts.items()}
        header = {"format": FORMAT, "facts": json.dumps(known)}
        try:
            write_whole(
                self.path, lambda path: safetensors.torch.save_file(tensors, path, metadata=header)
            )
        except SafetensorError as error:  # its own word for what the system says
            raise OSError(str(error)) from error
        self._saved, self.pending = time.monotonic(), False

    def remove(self) -> None:
        """Removes the file, and the temporary files of interrupted savings."""
        for path in (self.path, *self.path.parent.glob(f"{self.path.name}.*.tmp")):
            path.unlink(missing_ok=True)
        self._parts, self.pending = {}, False


@lru_cache(maxsize=1)
def code() -> str:
    """Returns a hash of this package's text: other code may train to other numbers."""
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def facts(path: Path, part: str) -> Mapping[str, Any]:
    """Returns the facts of a part without reading its tensors; none where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return _facts(file.metadata() or {}).get(part, {})
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError):
        return {}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file that is complete at any moment, the last version or the one before.

    Arguments:
        path: The file; its folder is made if need be.
        write: Writes the file that it is given.

    Raises:
        OSError: It cannot be written; the one before is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        _flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, State]:
    """Returns the states by part; none where there is no file."""
    if path.is_dir():
        raise CheckpointError(f"{path} is not a checkpoint: it is a folder")
    try:
        with safe_open(path, framework="pt") as file:
            known = _facts(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return {}
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: {str(error) or 'it is empty'}"
        ) from None
    parts: dict[str, State] = {part: State({}, each) for part, each in known.items()}
    for name, tensor in tensors.items():
        part, _, own = name.partition(":")
        if part in parts:
            parts[part].tensors[own] = tensor  # type: ignore[index]
    return parts


def _facts(header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns the facts of all parts from a file's header."""
    if header.get("format") != FORMAT:
        raise ValueError(f"expected the format '{FORMAT}'; got {header.get('format')!r:.80}")
    found = json.loads(header["facts"])
    if not (isinstance(found, dict) and all(isinstance(each, dict) for each in found.values())):
        raise ValueError("expected its facts as an object of objects")
    return found
