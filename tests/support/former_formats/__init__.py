"""What older programs wrote, kept as files, so that newer ones are shown to read it.

`data-directory-1.tar.xz`: the data directory of a suite on one machine, stopped in order, without logs and leases. Format 1: no collections
but studies. It has study 2.25.1001 (Patient ID `former`, Study Date 20260102) with two instances in series 2.25.1001.1 and one in series
2.25.1001.2, and study 2.25.1002 (Patient ID `gone`), whose one instance was deleted.
"""

import tarfile
from pathlib import Path

DATA_DIRECTORY_1 = Path(__file__).parent / "data-directory-1.tar.xz"


def unpack(archive: Path, directory: Path) -> None:
    """Unpack an archive of this folder."""
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
