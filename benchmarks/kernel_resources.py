"""What the compiler gave each GPU kernel of the library: registers and stack. A stack means spilled registers.

    kernel_resources.py [LIBRARY] [--match TEXT]

Reads the machine code with CUDA's cuobjdump. Ends with 1 where a kernel whose name contains TEXT has a stack.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    architecture: str
    name: str
    registers: int
    stack: int  # bytes a thread


def demangled(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [re.sub(r"fdpp::|\(anonymous namespace\)::|void |\(.*", "", name) for name in text.splitlines()]


def kernels_of(library: Path) -> list[Kernel]:
    command = ["cuobjdump", "--dump-resource-usage", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, architecture, name = [], "", ""
    for line in text.splitlines():
        if match := re.match(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            found.append((architecture, name, int(match[1]), int(match[2]) + int(match[3])))
    names = demangled([name for _, name, _, _ in found])
    return sorted(
        {Kernel(arch, name, registers, stack) for (arch, _, registers, stack), name in zip(found, names, strict=True)},
        key=lambda kernel: (kernel.architecture, kernel.name),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="?", type=Path, help="default: the installed one")
    parser.add_argument("--match", default="", metavar="TEXT", help="only kernels whose name contains it")
    options = parser.parse_args()
    library = options.library
    if library is None:
        import fdpp_ort

        library = Path(fdpp_ort.library_path())
    kernels = [kernel for kernel in kernels_of(library) if options.match in kernel.name]
    if not kernels:
        raise SystemExit(f"kernel_resources: error: {library} has no kernel whose name contains {options.match!r}")
    for kernel in kernels:
        print(f"{kernel.architecture:8} {kernel.registers:3} registers {kernel.stack:4} bytes of stack  {kernel.name}")
    spilled = [kernel for kernel in kernels if kernel.stack]
    print(f"{len(kernels)} kernels, {len(spilled)} with a stack")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
