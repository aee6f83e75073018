# SPDX-License-Identifier: Apache-2.0
"""
Finds, installs and compiles what the benchmark runs against.

Peers come from the distribution.  As root, what is missing is installed with
apt; otherwise, or where that fails, the parts that need it say so and the
others run.  Everything compiled goes to ``build/bench``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

__all__ = ["BUILD", "ROOT", "UnavailableError", "Workshop"]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench"
HERE = Path(__file__).resolve().parent
#: The package as one folder, for an interpreter that it is not installed in.
VIEW = ROOT / "build" / "view"
HEADERS = ROOT / "src" / "kprobe_modules" / "bpf"

#: Debian's bcc is importable by Debian's Python only.
SYSTEM_PYTHON = "/usr/bin/python3"
GO_PATH = Path("/usr/share/gocode")

#: A file that proves a package is there, and the package.
PACKAGES = {
    "/usr/include/bpf/libbpf.h": "libbpf-dev",
    "/usr/bin/gcc": "gcc",
    "/usr/bin/clang": "clang",
    "/usr/bin/go": "golang-go",
    f"{GO_PATH}/src/github.com/cilium/ebpf/perf": "golang-github-cilium-ebpf-dev",
    "/usr/lib/python3/dist-packages/bcc": "python3-bpfcc",
    "/usr/sbin/execsnoop-bpfcc": "bpfcc-tools",
    "/usr/sbin/execsnoop": "libbpf-tools",
}


class UnavailableError(Exception):
    """
    Something that a part needs is not on this machine; the text says what.
    """


def missing_packages() -> list[str]:
    """
    Names of the packages that :data:`PACKAGES` does not find.
    """
    return [package for proof, package in PACKAGES.items() if not Path(proof).exists()]


def install() -> str:
    """
    Install what is missing, if we may; return a line about what remains so.
    """
    missing = missing_packages()
    if not missing:
        return ""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-q"],
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing],
        ):
            subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
        missing = missing_packages()
    return f"not installed: {', '.join(missing)}" if missing else ""


def _compile(target: Path, sources: list[Path], command: list[str], **environment: str) -> Path:
    """
    Run *command* unless *target* is newer than every source.
    """
    newest = max(source.stat().st_mtime for source in sources)
    if target.exists() and target.stat().st_mtime >= newest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        msg = f"{command[0]} could not build {target.name}:\n{done.stdout}"
        raise UnavailableError(msg)
    return target


def _need(*proofs: str) -> None:
    missing = [PACKAGES[proof] for proof in proofs if not Path(proof).exists()]
    if missing:
        msg = f"needs the package {', '.join(missing)}"
        raise UnavailableError(msg)


@attrs.frozen
class Workshop:
    """
    Paths of compiled programs; each method builds its own on demand.

    All of them raise :class:`UnavailableError`.
    """

    build: Path = BUILD

    def generator_object(self) -> Path:
        """
        The BPF object of the generator, from the project's own headers.
        """
        folder = HERE / "generator"
        return self._bpf_object(folder / "generator.bpf.c", folder / "messages.h")

    def slot_object(self) -> Path:
        """
        The BPF object of a program that calls a slot, and of one that does not.
        """
        return self._bpf_object(HERE / "slot.bpf.c")

    def generate(self) -> Path:
        """
        The program that loads and runs the generator.
        """
        return self._c_program("generate", HERE / "generator" / "generate.c", "-lpthread")

    def consume_c(self) -> Path:
        """
        The libbpf consumer.
        """
        return self._c_program("consume", HERE / "peers" / "c" / "consume.c")

    def churn(self) -> Path:
        """
        The fork+exec loop.
        """
        return self._c_program("churn", HERE / "churn.c")

    def connect(self) -> Path:
        """
        The loop that connects.
        """
        return self._c_program("connect", HERE / "connect.c")

    def datagrams(self) -> Path:
        """
        The loop that sends datagrams.
        """
        return self._c_program("datagrams", HERE / "datagrams.c", "-lresolv")

    def consume_go(self) -> Path:
        """
        The cilium/ebpf consumer, built without any network.
        """
        _need("/usr/bin/go", f"{GO_PATH}/src/github.com/cilium/ebpf/perf")
        target = self.build / "consume-go"
        source = HERE / "peers" / "go" / "consume.go"
        return _compile(
            target,
            [source],
            ["go", "build", "-p", "1", "-o", str(target), str(source)],
            GO111MODULE="off",
            GOPATH=str(GO_PATH),
            GOCACHE=str(self.build / "go-cache"),
        )

    def consume_bcc(self) -> list[str]:
        """
        The command of the bcc consumer.
        """
        _need("/usr/lib/python3/dist-packages/bcc")
        return [SYSTEM_PYTHON, str(HERE / "peers" / "bcc" / "consume.py")]

    def consume_ours(self) -> list[str]:
        """
        The command of our own consumer.

        Where bcc can be imported, by the interpreter that imports it, so that two
        libraries are compared and not two builds of Python: they differ by a quarter.
        """
        python = [sys.executable]
        if Path("/usr/lib/python3/dist-packages/bcc").exists():
            python = system_python()
        return [*python, "-m", "tests.bench.peers.ours.consume"]

    def _bpf_object(self, source: Path, *headers: Path) -> Path:
        _need("/usr/bin/clang", "/usr/include/bpf/libbpf.h")
        target = self.build / source.name.replace(".bpf.c", ".bpf.o")
        flags = [f"-D__TARGET_ARCH_{_bpf_arch()}", f"-I{HEADERS}"]
        command = ["clang", "-target", "bpf", "-mcpu=v2", "-g", "-O2", "-Wall", *flags]
        sources = [source, *headers, *HEADERS.rglob("*.h")]
        return _compile(target, sources, [*command, "-c", str(source), "-o", str(target)])

    def _c_program(self, name: str, source: Path, *libraries: str) -> Path:
        _need("/usr/bin/gcc", "/usr/include/bpf/libbpf.h")
        target = self.build / name
        sources = [source, HERE / "wire.h", HERE / "generator" / "messages.h"]
        command = ["gcc", "-O2", "-Wall", "-o", str(target), str(source), "-lbpf", *libraries]
        return _compile(target, sources, command)


def system_python() -> list[str]:
    """
    The command of Debian's Python with this package as it would be installed.

    The checkout's own where there is none, or it is too old.
    """
    check = [SYSTEM_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(check, check=False).returncode:
        return [sys.executable]
    subprocess.run([sys.executable, "tools/package_view.py"], cwd=ROOT, check=True)
    path = os.pathsep.join(map(str, (VIEW, Path(attrs.__file__).parents[1])))
    return ["env", f"PYTHONPATH={path}", SYSTEM_PYTHON]


def _bpf_arch() -> str:
    return "x86" if os.uname().machine == "x86_64" else "arm64"
