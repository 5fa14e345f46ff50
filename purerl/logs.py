"""Where figures go: rllab's folder of CSV files, and TensorBoard."""

import contextlib
import csv
import io
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from purerl.checkpoint import write_atomically

STEPS, TIME, RATE = "Diagnostics/CumSteps", "Diagnostics/CumTime (s)", "Diagnostics/StepsPerSecond"
LOST = "Diagnostics/LostFragments"
PROGRESS = "progress.csv"


class CsvLog:
    """`progress.csv` of one lane, or another file like it; every row is on its way to the disk when `write` returns.

    Args:
        folder: of the lane.
        keep_steps: rows beyond this step count, left by a run that was killed after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, keep_steps: int = 0, name: str = PROGRESS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        try:
            header, rows = read_rows(path) if path.exists() else ([], [])
            rows = [row for row in rows if int(row[STEPS]) <= keep_steps]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: damaged ({error}); mend it or delete it, the run itself is in its checkpoints") from None
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())
        self._path, self._file = path, open(path, "a", newline="")  # noqa: SIM115
        self._fields = header if rows else None

    def write(self, row: dict[str, Any]) -> None:
        with _naming(self._path):
            if self._fields is None:
                self._fields = list(row)
                csv.DictWriter(self._file, self._fields, lineterminator="\n").writeheader()
            csv.DictWriter(self._file, self._fields, lineterminator="\n").writerow(row)
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a row that could not be written, which `write` has raised
            self._file.close()


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The header and the whole rows of a `progress.csv`; a last line cut short is left out."""
    text = path.read_text()
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    header = lines[0] if lines else []
    return header, [dict(zip(header, line, strict=True)) for line in lines[1:] if len(line) == len(header)]


class TensorBoardLog:
    """TensorBoard scalars of one run; every row is on its way to the disk when `write` returns.

    Args:
        purge_step: rows from this step on, left by an earlier process, are to be forgotten.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._folder = folder
        with _naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
            if purge_step is not None:
                self._event(purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, row: dict[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=x) for name, x in row.items() if math.isfinite(x)]
        with _naming(self._folder):
            self._event(int(row[STEPS]), summary=Summary(value=values))  # one event a row: ten times cheaper

    def _event(self, step: int, **what: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()


def write_all(rows: Iterable[tuple[CsvLog | TensorBoardLog, dict[str, Any]]]) -> None:
    """Write rows, each into its file; one that cannot be written keeps no other from its own.

    Raises:
        OSError: of the first that could not be written.
    """
    errors = []
    for log, row in rows:
        try:
            log.write(row)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the disk say what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
