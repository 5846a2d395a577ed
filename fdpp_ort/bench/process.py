"""A candidate's process, from the side that asks."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict

from fdpp_ort.bench.candidates import Candidate, environment_of
from fdpp_ort.bench.cells import Cell


class WorkerEnded(Exception):
    """The process ended or did not answer in time; the message says which."""


class Worker:
    """A context: the process ends with it. `used`: bytes in use on the GPU; None on a CPU."""

    def __init__(self, candidate: Candidate, used: Callable[[], int | None]):
        self._used = used
        self._before = used()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fdpp_ort.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment_of(candidate),
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._send(asdict(candidate.spec))

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _send(self, content: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it ended: answer() says so

    def answer(self, seconds: float) -> dict:
        """What it says next. WorkerEnded: nothing within so many seconds, or ever again."""
        try:
            line = self._answers.get(timeout=max(seconds, 0))
        except queue.Empty:
            raise WorkerEnded(f"no answer within {seconds:.0f} s") from None
        if line is None:
            raise WorkerEnded(f"the process ended, exit status {self._process.wait()}: {self._last_words()}")
        answer = json.loads(line)
        now = self._used()
        if now is not None:
            answer["peak_memory_bytes"] = now - self._before
        return answer

    def measure(self, cell: Cell, seconds: float) -> dict:
        self._send(asdict(cell))
        return self.answer(seconds)

    def _last_words(self) -> str:
        self._errors.seek(0)
        return " ".join(self._errors.read()[-1500:].split())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._errors.close()


def gpu_memory_in_use() -> int:
    """Bytes, of all processes, at this moment: what a candidate takes is the difference to before it began."""
    done = subprocess.run(
        ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.strip()) << 20
