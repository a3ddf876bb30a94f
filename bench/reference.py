"""The reference comparison on one machine: `python -m bench.reference [STAGE...]`.

Correctness first (the tests, on the device), then speed, then the experiments, most telling
first, and audits of some of their models. Each stage is a few commands as a person would type
them, run in one folder, with one MLflow store. The same command goes on where it was: what ended
well is not run again, and a grid that was cut short goes on with the trials it has left.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flowvae.checkpoint import code, write_whole
from flowvae.data import data_dir
from flowvae.errors import InputError, unknown
from flowvae.options import Positive

from .announce import say
from .command import COMPLETE, RESULTS, UNFINISHED, Parser, flag, guarded, terminal, writing
from .stages import STAGES, Stage

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["Attempt", "main"]

ROOT = Path(__file__).parents[1]
SEVERAL = {"cuda": ["--executor", "local", "--per-gpu", "3"]}
"""How a grid runs on a type of device: one job computes while others read, write and draw. Speeds
are then marked as shared, but where a stage times them again (`--timing exclusive`)."""
MOST = 14
"""The most processes that share a device in tests: each holds a context of its own."""
SAVING = 60.0
"""How long a command that is asked to end may take to save its state, s."""
DONE = "complete"
URI = "MLFLOW_TRACKING_URI"
WEIGHTS, PACKED = ".safetensors", ".tar.xz"


@dataclass(frozen=True)
class Attempt:
    """A command of a stage, and how it ended.

    Arguments:
        stage: The stage.
        status: `complete`, `status N` of a failure, or why it was cut short or not begun.
        seconds: What it took, s.
        began: Local time.
        device: Where it computed.
        code: A hash of the library's text.
        command: The command.
    """

    stage: str
    status: str
    seconds: float
    began: str
    device: str
    code: str
    command: str


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    return guarded(_run, argv)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.reference",
        description="Runs the tests, the benchmarks and the experiments that the reference "
        "results come from, one after the other, in one folder; goes on where it was.",
        epilog="Stages: "
        + "; ".join(f"{name}, {stage.what}" for name, stage in STAGES.items())
        + ". Exit status: 0 all complete, 1 some stage failed or was cut short, 2 usage, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("stages", nargs="*", metavar="STAGE", help="default: all, in this order")
    add("--folder", metavar="DIR", type=Path, default=RESULTS / "reference",
        help="where all is run and written (default: %(default)s)")  # fmt: skip
    add("--device", metavar="X", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--minutes", metavar="M", help="ask what runs to save and end after so long")
    add("--pack", metavar="FILE", type=Path,
        help="at the end, put the folder without weights into this .tar.xz")  # fmt: skip
    add("--tiny", action="store_true", help="rehearse: every stage, tiny, on any device")
    add("--force", action="store_true", help="run also stages that are complete")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parser().parse(argv), terminal()
    names = arguments.stages or list(STAGES)
    for name in names:
        if name not in STAGES:
            raise unknown("stage", name, STAGES)
    if arguments.pack and not arguments.pack.name.endswith(PACKED):
        raise InputError(f"bad --pack '{arguments.pack}': expected a name that ends in {PACKED}")
    minutes = arguments.minutes and flag("minutes", arguments.minutes, Positive, "min")
    if not (ROOT / "tests").is_dir():
        raise InputError(f"{ROOT} holds no tests: run this in a checkout, pip install -e .")

    from .devices import choose_device, device_name

    device = choose_device(arguments.device)
    folder = arguments.folder.resolve()
    with writing(folder):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    begun = _Reference(folder, device, device_name(device), tiny=arguments.tiny)
    until = time.monotonic() + 60 * minutes if minutes else None
    try:
        done = [begun.stage(name, until, force=arguments.force) for name in names]
    finally:
        console.print(begun.table(names), end="")
        say(console, "results", f"{folder / RESULTS}")
        say(console, "browse", f"cd {shlex.quote(str(folder))} && mlflow ui")
        if arguments.pack:
            with writing(arguments.pack):
                _pack(folder, arguments.pack)
            size = arguments.pack.stat().st_size / 2**20
            say(console, "packed", f"{arguments.pack}, {size:.1f} MiB, without weights")
    return COMPLETE if all(done) else UNFINISHED


class _Reference:
    """A folder in which the comparison runs, and what was run there.

    Arguments:
        folder: The folder; it exists.
        device: Where stages compute.
        name: What that is called.
        tiny: Whether this is a rehearsal.
    """

    def __init__(self, folder: Path, device: str, name: str, *, tiny: bool) -> None:
        import pandas as pd

        self.folder, self.device, self.name, self.tiny = folder, device, name, tiny
        self._file = folder / "attempts.csv"
        self.attempts: list[Attempt] = []
        if self._file.exists():
            table = pd.read_csv(self._file, keep_default_na=False, dtype=str)
            if list(table.columns) != list(Attempt.__dataclass_fields__):
                raise InputError(f"{self._file} is of another version: give another --folder")
            self.attempts = [
                Attempt(
                    **{**{str(k): v for k, v in row.items()}, "seconds": float(row["seconds"])}
                )
                for row in table.to_dict("records")
            ]

    def stage(self, name: str, until: float | None, *, force: bool) -> bool:
        """Runs the commands of a stage that are not complete; tells whether all are then."""
        stage = STAGES[name]
        for command, tiny in zip(stage.commands, stage.tiny, strict=True):
            words = self._words(command, tiny if self.tiny else "", stage)
            if not force and self._complete(shlex.join(words)):
                print(f"== {name}: was complete", flush=True)
            elif self._attempt(name, words, until) != DONE:
                return False
        return True

    def _complete(self, command: str) -> bool:
        """Tells whether a command ended well, on this device and with this code."""
        here = (command, DONE, self.name, code())
        return any((a.command, a.status, a.device, a.code) == here for a in self.attempts)

    def _words(self, command: str, more: str, stage: Stage) -> list[str]:
        """Returns the words of a command, after `python -m`."""
        processes = str(max(1, min((os.cpu_count() or 1) - 1, MOST)))
        filled = {"{device}": self.device, "{root}": str(ROOT), "{processes}": processes}
        words = shlex.split(command)
        for mark, value in filled.items():
            words = [word.replace(mark, value) for word in words]
        lists = {"{several}": SEVERAL.get(self.device.partition(":")[0], [])}
        if stage.models:
            lists["{models}"] = self._models(stage)
        return [each for word in [*words, *shlex.split(more)] for each in lists.get(word, [word])]

    def _models(self, stage: Stage) -> list[str]:
        """Returns the run ids of a stage's models; none where they are not there yet."""
        import pandas as pd

        assert stage.models is not None, "it audits none"
        experiment, wanted = stage.models
        table = self.folder / RESULTS / experiment / "trials.csv"
        if not table.exists():
            return []
        trials = pd.read_csv(table)
        for column, values in wanted.items():
            if not self.tiny:
                trials = trials[trials[column].isin(values)]
        return trials.loc[trials["status"] == "complete", "run_id"].tolist()

    def _attempt(self, name: str, words: Sequence[str], until: float | None) -> str:
        """Runs a command, keeps how it ended, and returns that."""
        typed = shlex.join(words)
        print(f"\n== {name}: python -m {typed}", flush=True)
        began, start, status = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic(), "interrupted"
        try:
            status = self._outcome(name, words, until)
        finally:
            print(f"== {name}: {status}", flush=True)
            spent = round(time.monotonic() - start, 1)
            attempt = Attempt(name, status, spent, began, self.name, code(), typed)
            self.attempts.append(attempt)
            with writing(self._file):
                write_whole(self._file, lambda path: self.frame().to_csv(path, index=False))
        return status

    def _outcome(self, name: str, words: Sequence[str], until: float | None) -> str:
        """Runs a command if it can begin; returns how it ended."""
        stage, left = STAGES[name], None if until is None else until - time.monotonic()
        if stage.models and not self._models(stage):
            return "nothing to audit"
        if left is not None and left <= (0 if self.tiny else stage.least):
            return f"not begun: {max(left, 0):.0f} s were left"
        return _call(words, self.folder, self.folder / "logs" / f"{name}.txt", left)

    def frame(self) -> pd.DataFrame:
        """Returns a row an attempt."""
        import pandas as pd

        return pd.DataFrame([asdict(attempt) for attempt in self.attempts])

    def table(self, names: Sequence[str]) -> Table:
        """Returns the newest attempt of each command of some stages."""
        from rich import box
        from rich.table import Table

        found = Table("stage", "began", "s", "how it ended", "log", box=box.SIMPLE_HEAD)
        newest = {(a.stage, a.command): a for a in self.attempts}
        for name in names:
            log = str(self.folder / "logs" / f"{name}.txt")
            for each in newest.values():
                if each.stage == name:
                    found.add_row(name, each.began, f"{each.seconds:.0f}", each.status, log)
        return found


def _call(words: Sequence[str], folder: Path, log: Path, limit: float | None) -> str:
    """Runs `python -m WORDS` in a folder, its output shown and logged; returns how it ended."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {name: value for name, value in os.environ.items() if name != URI}
    environment |= {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    environment |= {"FLOWVAE_DATA": str(data_dir().resolve())}
    with (
        open(log, "ab") as file,
        subprocess.Popen(
            [sys.executable, "-m", *words], cwd=folder, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        reader = threading.Thread(target=_copy, args=(process.stdout, file))
        reader.start()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return "cut short"
        finally:
            _end(process)
            reader.join()
    return DONE if process.returncode == COMPLETE else f"status {process.returncode}"


def _copy(source: IO[bytes], file: IO[bytes]) -> None:
    """Shows and logs what a process and those that it started say, until they have ended."""
    for line in source:
        for out in (sys.stdout.buffer, file):
            out.write(line)
            out.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to save its state and end; ends it, and what it leaves behind."""
    with suppress(subprocess.TimeoutExpired):
        process.terminate()  # nothing where it has ended
        process.wait(SAVING)
    with suppress(ProcessLookupError):  # a session of its own: the group is its own, too
        os.killpg(process.pid, signal.SIGKILL)


def _pack(folder: Path, file: Path) -> None:
    """Puts a folder without weights into an archive."""
    file.parent.mkdir(parents=True, exist_ok=True)

    def pack(path: Path) -> None:
        with tarfile.open(path, "w:xz", preset=1) as archive:
            archive.add(
                folder, folder.name, filter=lambda m: None if m.name.endswith(WEIGHTS) else m
            )

    write_whole(file, pack)


if __name__ == "__main__":
    sys.exit(main())
