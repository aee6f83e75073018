# SPDX-License-Identifier: Apache-2.0
"""
Boot a fetched kernel with QEMU on this machine's own root file system and run one command in it.

virtme-ng shares the root with the guest, read-only, so the guest has the same Python, the same
virtual environment and the same checkout.  One folder is shared for writing: what the command
prints goes there, and its exit status.  The console
stays apart, for the kernel's own words.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.vm.fetch import Image

ROOT = Path(__file__).resolve().parents[2]
BOOTS = 3
"""How often a guest is booted that does not get as far as its command."""
BOOT_SECONDS = 300.0
"""How long it may take to get there; on a quiet machine it takes half a minute."""
PASSED_ON = ("KPROBE_MODULES_", "PYTEST_", "HYPOTHESIS_", "CI")
APPENDED = (
    # An emulated processor loses seconds when the machine is busy; that is no stall.
    "rcupdate.rcu_cpu_stall_timeout=120",
    "watchdog_thresh=60",
    # Nor is a timer broken that has not ticked ten times within milliseconds.
    "no_timer_check",
    "nokaslr",
)
SCRIPT = """\
#!/bin/bash
# The guest has neither udev nor systemd: what they would mount is mounted here.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
{{
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
    mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
    mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
    ip link set lo up
    ulimit -l unlimited
    # The root is shared without a cache, so each import asks the host for every file again; this
    # second share has one.  The folders that Python reads are put over themselves from there.
    mkdir -p /run/cached /run/share
    mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose \
        {tag} /run/cached && mount --bind {share} /run/share && {{
        for folder in {cached}; do
            mount --bind "/run/cached$folder" "$folder"
        done
        mount --bind /run/share {share}
    }}
}} > /dev/null 2>&1
{exports}
cd {folder}
touch {share}/begun
( {command} ) > {share}/output 2>&1 < /dev/null
echo $? > {share}/status.new
dmesg > {share}/dmesg 2> /dev/null
mv {share}/status.new {share}/status
"""


#: The name that the guest knows the cached share by.
TAG = "kprobe_modules.cached"


class BootError(RuntimeError):
    """
    A guest could not be started, or ended without saying how its command did.
    """


@attrs.frozen
class Outcome:
    """
    What a guest left: the command's status and words, the kernel's words, and seconds taken.
    """

    status: int
    output: str
    dmesg: str
    seconds: float


@attrs.frozen
class Machine:
    """
    The shape of a guest.

    All processors are emulated in one thread, unless ``multi_threaded``: with a thread for each
    QEMU 7.2 sometimes runs what another one has patched long ago.  Where programs came and
    went at a function that was called 20,000 times a second, guests died of it within seconds (6.1,
    6.12, 7.3), or stood still (5.10); in one thread none did in minutes.  And a busy loop on one
    processor can't starve the others, which the guest's RCU would report as a stall.
    """

    memory: str = "1G"
    cpus: int = 2
    multi_threaded: bool = False


def run(
    image: Image,
    command: str | Sequence[str],
    *,
    share: Path,
    timeout: float,
    machine: Machine = Machine(),
    show: Callable[[str], object] | None = None,
) -> Outcome:
    """
    Boot ``image``, run ``command`` in the checkout as root and return its :class:`Outcome`.

    ``share`` is a folder that exists; the guest may write to it, under the same path.  ``timeout``
    in seconds covers the boot too.  ``show`` gets what the command prints, as it comes.  A kernel
    that panics or hangs before the command has begun is booted again: emulated processors race
    when one patches the code that another runs.

    Raises :exc:`BootError` when the guest dies, hangs or never gets as far as the command.
    """
    for left in reversed(range(BOOTS)):
        try:
            return _run(image, command, share=share, timeout=timeout, machine=machine, show=show)
        except BootError:
            if not left or (share / "begun").exists():
                raise
    raise AssertionError


def _run(
    image: Image,
    command: str | Sequence[str],
    *,
    share: Path,
    timeout: float,
    machine: Machine = Machine(),
    show: Callable[[str], object] | None = None,
) -> Outcome:
    for name in ("output", "begun", "status", "status.new", "dmesg", "console"):
        (share / name).unlink(missing_ok=True)
    script = share / "script"
    script.write_text(_script(command, share))
    script.chmod(0o755)
    (share / "output").touch()
    started = time.monotonic()
    with (share / "console").open("wb") as console:
        guest = subprocess.Popen(
            # Should this process be killed, the guest still ends in time.
            [
                "timeout",
                "--kill-after=5",
                f"{timeout + 10:.0f}",
                *_vng(image, script, share, machine),
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            },
            start_new_session=True,
        )
        try:
            ended = _follow(guest, share, started, timeout, show)
        finally:
            _end(guest)
    seconds = time.monotonic() - started
    status = share / "status"
    if not status.exists():
        tail = "\n".join(_read(share / "console").splitlines()[-40:])
        how = (
            f"ended (status {guest.returncode})" if ended else f"was stopped after {seconds:.0f} s"
        )
        said = f"the guest {how} before its command did; the end of its console:\n{tail}"
        msg = f"{image.release}: {said}"
        raise BootError(msg)
    return Outcome(
        int(status.read_text()), _read(share / "output"), _read(share / "dmesg"), seconds
    )


def missing() -> list[str]:
    """
    Return what this machine lacks for booting guests, each with its remedy.
    """
    lacks = []
    if shutil.which("qemu-system-x86_64") is None:
        lacks.append("qemu-system-x86_64 (apt-get install qemu-system-x86)")
    if _vng_path() is None:
        lacks.append("vng (pip install '.[vm]')")
    if shutil.which("busybox") is None:
        lacks.append("a static busybox (apt-get install busybox-static)")
    return lacks


def python() -> str:
    """
    Return the path of the running Python, which the guest has too.
    """
    return shlex.quote(sys.executable)


def _vng_path() -> str | None:
    beside = Path(sys.executable).parent / "vng"
    return str(beside) if beside.exists() else shutil.which("vng")


def _vng(image: Image, script: Path, share: Path, machine: Machine) -> list[str]:
    lacks = missing()
    if lacks:
        msg = f"no guest can be booted: missing {', '.join(lacks)}"
        raise BootError(msg)
    command = [
        _vng_path() or "vng", "--verbose", "--disable-microvm", "--force-9p", "--force-initramfs",
        "--run", str(image.vmlinuz), "--memory", machine.memory, "--cpus", str(machine.cpus),
        "--rwdir", str(share), "--cwd", "/", "--exec", str(script),
    ]  # fmt: skip
    for option in APPENDED:
        command += ["--append", option]
    if os.environ.get("KPROBE_MODULES_VM_KVM", "0") in {"", "0"}:
        # KVM is often visible and unusable (nested guests): emulation is the same everywhere.
        command.append("--disable-kvm")
        thread = "multi" if machine.multi_threaded else "single"
        command.append(f"--qemu-opts=-accel tcg,thread={thread}")
    shared = "local,path=/,security_model=none,readonly=on,multidevs=remap"
    command.append(f"--qemu-opts=-fsdev {shared},id=cached")
    command.append(f"--qemu-opts=-device virtio-9p-pci,fsdev=cached,mount_tag={TAG}")
    return command


def _script(command: str | Sequence[str], share: Path) -> str:
    text = command if isinstance(command, str) else shlex.join(command)
    names = sorted(name for name in os.environ if name.startswith(PASSED_ON))
    exports = {name: os.environ[name] for name in names}
    exports.update(
        HOME="/root",
        LC_ALL="C.UTF-8",
        PYTHONDONTWRITEBYTECODE="1",
        HYPOTHESIS_STORAGE_DIRECTORY="/tmp/hypothesis",  # noqa: S108  (the guest's own)
        KPROBE_MODULES_GUEST_SHARE=str(share),
    )
    return SCRIPT.format(
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        folder=shlex.quote(str(ROOT)),
        share=shlex.quote(str(share)),
        tag=TAG,
        cached=" ".join(map(shlex.quote, _read_by_python())),
        command=text,
    )


def _read_by_python() -> list[str]:
    """
    Return the folders that this Python and its tests are read from, none inside another.
    """
    folders = {str(ROOT), sys.prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    kept: list[str] = []
    for folder in sorted(os.path.realpath(folder) for folder in folders):
        if folder != "/usr" and not any(folder.startswith(f"{outer}/") for outer in kept):
            kept.append(folder)
    return kept


def _follow(
    guest: subprocess.Popen[bytes],
    share: Path,
    started: float,
    timeout: float,
    show: Callable[[str], object] | None,
) -> bool:
    """
    Show what the command prints until the guest ends (true) or its time is over (false).
    """
    begun = share / "begun"
    with (share / "output").open("r", errors="replace") as printed:
        while True:
            ended = guest.poll() is not None
            text = printed.read()
            if text and show is not None:
                show(text)
            given = timeout if begun.exists() else min(timeout, BOOT_SECONDS)
            if ended or time.monotonic() > started + given:
                return ended
            time.sleep(0.2)


def _end(guest: subprocess.Popen[bytes]) -> None:
    """
    Stop the guest's whole process group: vng, its shell and QEMU.
    """
    if guest.poll() is None:
        os.killpg(guest.pid, signal.SIGTERM)
        try:
            guest.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(guest.pid, signal.SIGKILL)
            guest.wait()


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
