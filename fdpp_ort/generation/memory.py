"""Memory of this process."""

import re
import resource
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most memory that was resident at once. Linux's own figure where there is one: the one of getrusage starts, in
    a child process, with its parent's."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
