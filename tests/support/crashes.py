"""Crashes of the books: a file layer that records every step, and what a disk may hold after a crash between them.

The model is the weakest that POSIX allows. What was written to a file since its last fsync is there, partly there, or
not, each write on its own; what was done to the names of a folder since its last fsync is there or not, each on its
own. What was fsynced is there.

Also disks that refuse, and processes that are really killed.

Example:
    files = RecordingFiles(tmp_path)
    ...                                      # write the books through ``files``; say what was sent: files.mark("sent")
    for crash in crashes(files.log):
        crash.materialise(target)            # then open the books in ``target``, and look
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from fedward_client.books.files import Files

LAYER = ("files.py", "crashes.py")  # frames that only pass a step on


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: ``kind`` is the file layer's method, or "mark"; ``by`` the code that asked for it."""

    kind: str
    by: str
    folder: str = ""
    name: str = ""
    target: str = ""
    file: int = -1
    data: bytes = b""
    offset: int = 0
    mark: Any = None

    @property
    def label(self) -> str:
        """What a test names a step by: ``journal.append fsync``."""
        return f"{self.by} {self.kind}"


class Killed(BaseException):
    """The process was killed before a step; what it had written is still in memory, and not on disk."""


@dataclass
class RecordingFiles(Files):
    """The real disk under one folder, with a record of every step that changes it."""

    root: Path
    log: list[Step] = field(default_factory=list)
    kill_before: int | None = None

    def __post_init__(self) -> None:
        self._inodes: dict[Path, int] = {}
        self._open: dict[int, int] = {}
        self._numbers = itertools.count()

    def mark(self, what: object) -> None:
        """Note what happened outside of the disk, at this place of the record."""
        self._note("mark", mark=what)

    def forsake(self) -> None:
        """What the operating system does with a killed process: close its files."""
        for descriptor in tuple(self._open):
            self.close(descriptor)
        self.kill_before = None

    def open(self, path: Path) -> int:
        descriptor = super().open(path)
        self._open[descriptor] = self._inodes[path]
        return descriptor

    def create_new(self, path: Path) -> int:
        number = next(self._numbers)
        self._note("create_new", path, file=number)
        descriptor = super().create_new(path)
        self._inodes[path] = self._open[descriptor] = number
        return descriptor

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        super().close(descriptor)

    def write_at(self, descriptor: int, data: bytes, offset: int) -> None:
        self._note("write_at", file=self._open[descriptor], data=bytes(data), offset=offset)
        super().write_at(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        if os.fstat(descriptor).st_size != size:
            self._note("truncate", file=self._open[descriptor], offset=size)
            super().truncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        self._note("fsync", file=self._open[descriptor])

    def fsync_folder(self, folder: Path) -> None:
        self._note("fsync_folder", folder / "x")

    def rename(self, source: Path, target: Path) -> None:
        self._note("rename", source, target=target.name, file=self._inodes[source])
        super().rename(source, target)
        self._inodes[target] = self._inodes.pop(source)

    def remove(self, path: Path) -> None:
        if path.exists():
            self._note("remove", path)
            self._inodes.pop(path)
        super().remove(path)

    def _note(self, kind: str, path: Path | None = None, **rest: Any) -> None:
        if self.kill_before is not None and len(self.log) >= self.kill_before:
            raise Killed
        where: dict[str, Any] = {}
        if path is not None:
            where = {"folder": str(path.parent.relative_to(self.root)), "name": path.name}
        self.log.append(Step(kind=kind, by=_asked_by(sys._getframe(1)), **where, **rest))


def _asked_by(frame: FrameType | None) -> str:
    while frame is not None and frame.f_code.co_filename.endswith(LAYER):
        frame = frame.f_back
    assert frame is not None
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


@dataclass
class FailingFiles(Files):
    """The real disk, until its steps have run out; from then on every step that changes it fails."""

    steps: int
    code: int

    def create_new(self, path: Path) -> int:
        self._count()
        return super().create_new(path)

    def write_at(self, descriptor: int, data: bytes, offset: int) -> None:
        try:
            self._count()
        except OSError:
            super().write_at(descriptor, data[: len(data) // 2], offset)  # a full disk takes a part first
            raise
        super().write_at(descriptor, data, offset)

    def fsync(self, descriptor: int) -> None:
        self._count()

    def fsync_folder(self, folder: Path) -> None:
        self._count()

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def _count(self) -> None:
        if self.steps <= 0:
            raise OSError(self.code, os.strerror(self.code))
        self.steps -= 1


# ---- what a disk may hold ------------------------------------------------------------
Content = dict[str, bytes]  # by path under the root


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One state of the disk after a crash before step ``before``, and the marks by then."""

    before: int
    content: Content
    marks: tuple[Any, ...]

    def materialise(self, root: Path) -> None:
        """Make the folder hold this, and nothing else."""
        for path in root.rglob("*"):
            if path.is_file() and str(path.relative_to(root)) not in self.content:
                path.unlink()
        for name, data in self.content.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)


@dataclass
class _Disk:
    """What is safe, and what may still be lost."""

    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    waiting: list[Step] = field(default_factory=list)

    def take(self, step: Step) -> None:
        if step.kind in ("fsync", "fsync_folder"):
            settled = [s for s in self.waiting if _settles(step, s)]
            self.waiting = [s for s in self.waiting if not _settles(step, s)]
            for each in settled:
                _apply(each, each.data, self.files, self.names)
        elif step.kind != "mark":
            self.waiting.append(step)

    def outcomes(self) -> Iterator[Content]:
        for pieces in itertools.product(*(_pieces(step) for step in self.waiting)):
            files, names = dict(self.files), dict(self.names)
            for step, piece in zip(self.waiting, pieces, strict=True):
                if piece is not None:
                    _apply(step, piece, files, names)
            yield {name: files.get(number, b"") for name, number in names.items()}


def _settles(sync: Step, step: Step) -> bool:
    if sync.kind == "fsync":
        return step.kind in ("write_at", "truncate") and step.file == sync.file
    return step.kind in ("create_new", "rename", "remove") and step.folder == sync.folder


def _pieces(step: Step) -> Sequence[bytes | None]:
    """How much of a step that nothing made safe may be there: None is nothing, zeros are a hole."""
    if step.kind != "write_at" or len(step.data) < 2:
        return (None, step.data)
    half = len(step.data) // 2
    hole = bytes(half) + step.data[half:]
    return (None, step.data, step.data[:1], step.data[:half], step.data[:-1], hole)


def _apply(step: Step, piece: bytes, files: dict[int, bytes], names: dict[str, int]) -> None:
    path = os.path.normpath(f"{step.folder}/{step.name}") if step.folder else ""
    match step.kind:
        case "create_new":
            names[path] = step.file
        case "remove":
            names.pop(path, None)
        case "rename":
            names.pop(path, None)
            names[os.path.normpath(f"{step.folder}/{step.target}")] = step.file
        case "truncate":
            files[step.file] = files.get(step.file, b"")[: step.offset].ljust(step.offset, b"\0")
        case "write_at":
            old = files.get(step.file, b"").ljust(step.offset, b"\0")
            files[step.file] = old[: step.offset] + piece + old[step.offset + len(piece) :]


def crashes(
    log: Sequence[Step], *, without: Collection[str] = (), first: int = 0, seen: set[int] | None = None
) -> Iterator[Crash]:
    """Every state after a crash before each step.

    Args:
      log: what was recorded.
      without: labels of steps that, here, were forgotten.
      first: the first step to crash before.
      seen: states that were looked at already, which is added to.
    """
    disk, marks = _Disk(), list[Any]()
    seen = set() if seen is None else seen
    for number, step in enumerate((*log, Step(kind="mark", by="end"))):
        for content in disk.outcomes() if number >= first else ():
            state = hash((frozenset(content.items()), tuple(marks)))
            if state not in seen:
                seen.add(state)
                yield Crash(before=number, content=content, marks=tuple(marks))
        if step.kind == "mark":
            marks.append(step.mark)
        elif step.label not in without:
            disk.take(step)


# ---- a process that is really killed ---------------------------------------------------
def killed_child(
    work: Callable[[int], None], *, lines: int = 1, wait: Callable[[], object] = lambda: None
) -> list[tuple[str, str]]:
    """Fork, let the child work, kill it with SIGKILL, and give all that it had told by then.

    The kill falls after the child has told this many lines, and once ``wait`` returns. ``work`` gets a descriptor to
    ``tell``.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons: the threads here are idle
        child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work(writing)
        except BaseException as error:
            tell(writing, ("error", repr(error)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        try:
            heard = [pipe.readline() for _ in range(lines)]
            wait()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        told = [line.decode().rstrip("\n").partition(" ") for line in (*heard, *pipe) if line]
    return [(kind, what) for kind, _, what in told]


def tell(descriptor: int, what: tuple[str, str]) -> None:
    """Write a line in one piece."""
    os.write(descriptor, f"{what[0]} {what[1]}\n".encode())
