"""Files of Debian's packages in a folder: nothing is installed, no rights are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

RELEASE = "trixie"
"""The first that has libonnxruntime-dev."""
SETTINGS = """
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "-";
Dir::State "{folder}/state";
Dir::Cache "{folder}/cache";
"""


def unpacked(folder: Path, *packages: str) -> Path | str:
    """The root below which the files of ``packages`` lie, or why they cannot be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "apt-get and dpkg-deb are not here"
    mirror = next((line[7:] for line in _run("apt-get", "indextargets", *_FORMAT) if line.startswith("Debian ")), None)
    if mirror is None:
        return "no source of Debian's packages is set up"
    for place in ("state/lists/partial", "cache/archives/partial", "debs"):
        (folder / place).mkdir(parents=True)
    keys = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "sources.list").write_text(f"deb [{keys}] {mirror} {RELEASE} main\n")
    (folder / "apt.conf").write_text(SETTINGS.format(folder=folder))
    apt = ("apt-get", "-q", "-c", str(folder / "apt.conf"))
    try:
        _run(*apt, "update")
        _run(*apt, "download", *packages, cwd=folder / "debs")
        for package in sorted((folder / "debs").glob("*.deb")):
            _run("dpkg-deb", "-x", str(package), str(folder / "root"))
    except subprocess.SubprocessError as error:
        return f"{packages} cannot be downloaded from Debian {RELEASE}: {str(getattr(error, 'stderr', error))[-200:]}"
    return folder / "root"


_FORMAT = ("--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")


def _run(*command: str, cwd: Path | None = None) -> list[str]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=240)
    return done.stdout.splitlines()
