# SPDX-License-Identifier: Apache-2.0
"""
Fetch a Debian kernel package and unpack it into the cache, without installing anything.

apt does the work, with a state folder of its own, so the machine's package lists stay as they are.
The mirror is the one that apt is configured with; ``KPROBE_MODULES_DEBIAN_MIRROR`` names another.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.vm.kernels import Kernel

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
KERNEL_PACKAGE = re.compile(r"linux-(?:image|modules|binary)-[0-9][^ ,|(]*")


class FetchError(RuntimeError):
    """
    A kernel could not be fetched; the text says what was asked of whom.
    """


@attrs.frozen
class Image:
    """
    An unpacked kernel: its release, its compressed image and the folder of its loadable modules.
    """

    release: str
    vmlinuz: Path
    modules: Path


def cache() -> Path:
    """
    Return the folder, outside the checkout, where kernels are kept.
    """
    chosen = os.environ.get("KPROBE_MODULES_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "kprobe_modules"


def cached(kernel: Kernel) -> Image | None:
    """
    Return the kernel's image if it was fetched before.
    """
    folder = cache() / "kernels" / kernel.name
    for image in sorted(folder.glob("boot/vmlinuz-*")):
        release = image.name.removeprefix("vmlinuz-")
        modules = folder / "lib/modules" / release
        if (modules / "modules.dep").exists():
            return Image(release, image, modules)
    return None


def fetch(kernel: Kernel, *, again: bool = False) -> Image:
    """
    Return the kernel's image, fetching the newest build when there is none yet or ``again`` is set.

    Raises :exc:`FetchError` when apt cannot deliver it.
    """
    kernels = cache() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    with _locked(kernels / f"{kernel.name}.lock"):
        image = cached(kernel)
        if image is not None and not again:
            return image
        with tempfile.TemporaryDirectory(dir=kernels, prefix=f".{kernel.name}-") as name:
            work = Path(name)
            unpacked = work / "unpacked"
            for package in _download(kernel, work):
                _run(["dpkg-deb", "-x", str(package), str(unpacked)])
            _tidy(unpacked)
            shutil.rmtree(kernels / kernel.name, ignore_errors=True)
            unpacked.rename(kernels / kernel.name)
        image = cached(kernel)
    if image is None:
        where = kernels / kernel.name
        msg = f"kernel {kernel.name}: the packages hold no image with its modules in {where}"
        raise FetchError(msg)
    return image


def mirrors() -> dict[str, str]:
    """
    Return the addresses of Debian's ``main`` and ``security`` archives, as apt knows them.
    """
    chosen = os.environ.get("KPROBE_MODULES_DEBIAN_MIRROR")
    if chosen:
        main = chosen.rstrip("/")
        return {"main": main, "security": f"{main}-security"}
    targets = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    found: dict[str, str] = {}
    for address in (line.rstrip("/") for line in targets.splitlines()):
        if address.endswith("/debian"):
            found.setdefault("main", address)
        elif "security" in address and "debian" in address:
            found.setdefault("security", address)
    if "main" not in found:
        msg = "apt knows no Debian archive: name a mirror in KPROBE_MODULES_DEBIAN_MIRROR"
        raise FetchError(msg)
    found.setdefault("security", f"{found['main']}-security")
    return found


def _download(kernel: Kernel, work: Path) -> list[Path]:
    """
    Download the packages of the kernel's newest build into ``work`` and return their paths.
    """
    apt = _Apt(work)
    try:
        _update(apt, work, kernel.suites)
    except FetchError:
        if kernel.suites[1:] == ():
            raise
        _update(apt, work, kernel.suites[:1])
    architecture = _run(["dpkg", "--print-architecture"]).strip()
    shown = _run([*apt("apt-cache"), "--no-all-versions", "show", f"linux-image-{architecture}"])
    packages = _kernel_packages(shown)
    for package in list(packages):
        further = _kernel_packages(_run([*apt("apt-cache"), "--no-all-versions", "show", package]))
        packages.extend(name for name in further if name not in packages)
    if not packages:
        asked = f"linux-image-{architecture} of {kernel.suites[0]}"
        msg = f"kernel {kernel.name}: {asked} depends on no kernel package"
        raise FetchError(msg)
    debs = work / "debs"
    debs.mkdir()
    _run([*apt("apt-get"), "download", *packages], folder=debs)
    return sorted(debs.glob("*.deb"))


def _kernel_packages(shown: str) -> list[str]:
    lines = [line for line in shown.splitlines() if line.startswith(("Depends:", "Pre-Depends:"))]
    return list(dict.fromkeys(KERNEL_PACKAGE.findall(" ".join(lines))))


class _Apt:
    """
    Builds command lines for an apt with package lists, cache and sources of its own.
    """

    def __init__(self, work: Path) -> None:
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        (work / "status").touch()
        settings = {
            "Dir::State": work / "state",
            "Dir::State::status": work / "status",
            "Dir::Cache": work / "cache",
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Retries": "3",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
        }
        self.options = [
            part for key, value in settings.items() for part in ("-o", f"{key}={value}")
        ]

    def __call__(self, program: str) -> list[str]:
        return [program, *self.options]


def _update(apt: _Apt, work: Path, suites: Sequence[str]) -> None:
    keyring = next((path for path in KEYRINGS if path.exists()), None)
    signed = f"[signed-by={keyring}] " if keyring else ""
    addresses = mirrors()
    lines = []
    for suite in suites:
        address = addresses["security" if suite.endswith("-security") else "main"]
        lines.append(f"deb {signed}{address} {suite} main\n")
    (work / "sources.list").write_text("".join(lines))
    _run([*apt("apt-get"), "update"])


def _tidy(unpacked: Path) -> None:
    """
    Give every package the same shape, and write ``modules.dep``, as installing it would have.

    Until bookworm the image is ``boot/vmlinuz-<release>`` and modules are under ``lib``; trixie
    moved modules to ``usr/lib``, and its 7.x packages put the image among them.
    """
    merged = unpacked / "usr/lib/modules"
    if merged.is_dir():
        (unpacked / "lib").mkdir(exist_ok=True)
        merged.rename(unpacked / "lib/modules")
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod is None:
        msg = "depmod is missing: apt-get install kmod"
        raise FetchError(msg)
    for modules in unpacked.glob("lib/modules/*"):
        among = modules / "vmlinuz"
        if among.exists():
            (unpacked / "boot").mkdir(exist_ok=True)
            among.rename(unpacked / "boot" / f"vmlinuz-{modules.name}")
        _run([depmod, "-b", str(unpacked), modules.name])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    """
    Run a program and return what it printed; its own words are in the error when it fails.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if done.returncode:
        msg = f"{command[0]} {command[-1]}: exit status {done.returncode}\n{done.stderr.strip()}"
        raise FetchError(msg)
    return done.stdout
