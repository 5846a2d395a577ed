"""Programs that a benchmark calls."""

from __future__ import annotations

import subprocess


def run(*command: object, given: str = "", limit: float | None = None) -> subprocess.CompletedProcess[str]:
    """Its output as text. SystemExit with the end of what it said: it failed. TimeoutExpired: after `limit` seconds."""
    words = [str(part) for part in command]
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=limit)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]}: exit status {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done
