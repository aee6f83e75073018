# SPDX-License-Identifier: Apache-2.0
"""
What the running kernel offers, found out by looking and trying.

Kernels are told apart by shape, never by version number: distributions carry
features backwards, and builds leave them out.  Answers have three values, for
what cannot be told without privileges must not pass for an absence.
"""

from __future__ import annotations

import enum
import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kprobe_modules import capabilities
from kprobe_modules.byfields import ByFields
from kprobe_modules.errors import KprobeModulesError, NotSupportedError
from kprobe_modules.kernelbtf import KernelBtf
from kprobe_modules.libbpf.descriptor import ENOTSUPP, symbol_of
from kprobe_modules.symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Callable

    from kprobe_modules.libbpf import Library

__all__ = ["Answer", "Features", "Support"]

_PROC = Path("/proc")
_SYS = Path("/sys")


class Support(enum.Enum):
    """
    Whether the kernel has something.
    """

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@attrs.frozen(eq=False, repr=False)
class Answer(ByFields):
    """
    An answer with its reason, which is a sentence for people.
    """

    support: Support
    reason: str = ""

    def __bool__(self) -> bool:
        return self.support is Support.YES


def _yes(reason: str = "") -> Answer:
    return Answer(Support.YES, reason)


def _no(reason: str) -> Answer:
    return Answer(Support.NO, reason)


def _unknown(reason: str) -> Answer:
    return Answer(Support.UNKNOWN, reason)


class Features:
    """
    Ask the running kernel what it has.

    Nothing is read before it is asked for.  YES and NO are remembered, UNKNOWN
    is asked again; a new object sees kernel modules loaded since.  Safe to use
    from several threads.

    Args:
        library: the libbpf to try things with; :func:`~kprobe_modules.libbpf.find`'s
            by default, looked for when first needed.
        proc: where procfs is mounted.
        sys: where sysfs is mounted.
        btf: the kernel's BTF, to share what another object has found.
    """

    def __init__(
        self,
        library: Library | None = None,
        *,
        proc: Path = _PROC,
        sys: Path = _SYS,
        btf: KernelBtf | None = None,
    ) -> None:
        self._library = library
        self._proc = proc
        self._sys = sys
        self.btf = btf or KernelBtf(sys=sys)
        self._symbols = Symbols(proc / "kallsyms")
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, ...], Answer] = {}

    @property
    def capabilities(self) -> frozenset[str]:
        """
        Names of the effective capabilities of this process.
        """
        return capabilities.effective(self._proc / "self" / "status")

    def program(self, kind: str, target: str) -> Answer:
        """
        Say whether a program of an object can be attached here.

        Args:
            kind: how, the first part of its section: ``kprobe``, ``kretprobe``,
                ``fentry``, ``fexit``, ``tp_btf``, ``raw_tp``, ``tracepoint``,
                ``iter``.
            target: where, the rest of it: a function, a tracepoint
                (``category/name`` for a classic one) or an iterator.  Empty
                for programs that others call.
        """
        if not target and kind in _WHOLE_KINDS:
            return _WHOLE_KINDS[kind](self)
        ask = _KINDS.get(kind)
        if ask is None:
            return _unknown(f"no probe is known for programs of kind {kind or 'none'}")
        return ask(self, target)

    def kprobes(self) -> Answer:
        """
        Say whether kprobes can be attached at all.

        Looks for the attach path, the kprobe event source: kernels without
        kprobes load kprobe programs happily.
        """
        if (self._sys / "bus/event_source/devices/kprobe/type").exists():
            return _yes()
        if not (self._sys / "bus/event_source/devices").is_dir():
            return _unknown("sysfs has no event sources to look at")
        return _no("the kernel has no kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)")

    def kprobe(self, function: str) -> Answer:
        """
        Say whether a function, by exact name, can get a kprobe.
        """
        return self._cached(("kprobe", function), lambda: self._kprobe(function))

    def _kprobe(self, function: str) -> Answer:
        possible = self.kprobes()
        if not possible:
            return possible
        count = self._symbols.count(function)
        if count is None:
            return _unknown(f"{self._symbols.path} cannot be read")
        if not count:
            return _no(f"the kernel has no function {function}")
        if function in self._blacklist():
            return _no(f"{function} is on the kernel's list of functions without kprobes")
        if count > 1:
            # Recent kernels refuse an ambiguous name, older ones take the first.
            return _unknown(f"the kernel has {count} functions named {function}")
        return _yes()

    def _blacklist(self) -> frozenset[str]:
        try:
            text = (self._sys / "kernel/debug/kprobes/blacklist").read_text(encoding="utf-8")
        except OSError:
            return frozenset()  # debugfs is for root, and may not be mounted
        return frozenset(line.split()[-1] for line in text.splitlines() if line.strip())

    def fentry(self) -> Answer:
        """
        Say whether fentry and fexit programs can be attached, by attaching one.

        The program returns at once, and the function it is attached to for a
        moment is one that exists for such tests, where the kernel has it.
        """
        return self._cached(("fentry",), self._fentry)

    def _fentry(self) -> Answer:
        from kprobe_modules.libbpf import probes

        missing = self._btf_missing()
        if missing:
            return missing
        privileged = self._privileged()
        if privileged is not None:
            return privileged
        function = next(filter(self.btf.has_function, probes.FENTRY_CANDIDATES), None)
        if function is None:
            return _unknown("none of the functions to try it with is in the kernel's BTF")
        code = probes.try_fentry(function, self._library, type_id=self.btf.type_id(function))
        if code == 0:
            return _yes()
        symbol = symbol_of(code)
        # Of a process that may load programs, EPERM is refused like the rest:
        # microVMs and locked-down hosts answer so.
        if code in _REFUSALS:
            return _no(f"the kernel refuses fentry programs ({symbol})")
        return _unknown(f"attaching an fentry program failed ({symbol})")

    def fentry_function(self, function: str) -> Answer:
        """
        Say whether a function can get an fentry or fexit program.
        """
        return self._cached(("fentry", function), lambda: self._fentry_function(function))

    def _fentry_function(self, function: str) -> Answer:
        missing = self._btf_missing()
        if missing:
            return missing
        # The cheap question first: it needs no privileges either.
        if not self.btf.has_function(function):
            return _no(f"the kernel's BTF has no function {function}")
        return self.fentry()

    def tracepoint_btf(self, name: str) -> Answer:
        """
        Say whether a BTF tracepoint exists (``tp_btf/name``).
        """
        return self._cached(("tp_btf", name), lambda: self._tracepoint_btf(name))

    def _tracepoint_btf(self, name: str) -> Answer:
        missing = self._btf_missing()
        if missing:
            return missing
        return (
            _yes() if self.btf.has_tracepoint(name) else _no(f"the kernel has no tracepoint {name}")
        )

    def raw_tracepoint(self, name: str) -> Answer:
        """
        Say whether a raw tracepoint exists; it is the same set as with BTF.
        """
        if self.btf.available:
            return self.tracepoint_btf(name)
        return _unknown("the kernel has no BTF to look in")

    def tracepoint(self, category: str, name: str = "") -> Answer:
        """
        Say whether a classic tracepoint exists, which needs tracefs.

        Args:
            category: e.g. ``sched``; or, without a name, ``category/name``.
            name: e.g. ``sched_process_exec``.
        """
        if not name:
            category, _, name = category.partition("/")
        key = ("tracepoint", category, name)
        return self._cached(key, lambda: self._tracepoint(category, name))

    def _tracepoint(self, category: str, name: str) -> Answer:
        for root in ("kernel/tracing", "kernel/debug/tracing"):
            events = self._sys / root / "events"
            try:
                # stat: is_dir() would hide that entering is not permitted.
                events.stat()
                found = (events / category / name / "id").exists()
            except PermissionError:
                return _unknown(f"{events} may not be read (CAP_DAC_READ_SEARCH)")
            except OSError:
                continue
            if found:
                return _yes()
            return _no(f"the kernel has no tracepoint {category}:{name}")
        return _no("tracefs is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)")

    def iterator(self, name: str) -> Answer:
        """
        Say whether an iterator exists (``iter/name``).
        """
        return self._cached(("iter", name), lambda: self._iterator(name))

    def _iterator(self, name: str) -> Answer:
        missing = self._btf_missing()
        if missing:
            return missing
        return _yes() if self.btf.has_iterator(name) else _no(f"the kernel has no iterator {name}")

    def ring_buffer(self) -> Answer:
        """
        Say whether BPF ring buffers exist, by making one.
        """
        return self._cached(("ring buffer",), self._ring_buffer)

    def _ring_buffer(self) -> Answer:
        from kprobe_modules.libbpf import probes

        privileged = self._privileged()
        if privileged is not None:
            return privileged
        found = probes.has_ring_buffer(self._library)
        return _yes() if found else _no("the kernel has no BPF ring buffers")

    def run_on_cpu(self) -> Answer:
        """
        Say whether a raw tracepoint program can be run on a chosen CPU.
        """
        return self._cached(("run on cpu",), self._run_on_cpu)

    def _run_on_cpu(self) -> Answer:
        from kprobe_modules.libbpf import probes

        privileged = self._privileged()
        if privileged is not None:
            return privileged
        code = probes.try_run_on_cpu(self._library)
        if code == 0:
            return _yes()
        symbol = symbol_of(code)
        if code in {errno.EPERM, errno.EACCES}:
            return _unknown(f"running programs is not permitted ({symbol})")
        return _no(f"the kernel does not run programs on a chosen CPU ({symbol})")

    def close(self) -> None:
        """
        Give back the memory of symbols and BTF; answers given so far stay.
        """
        self.btf.close()
        self._symbols.close()

    def _btf_missing(self) -> Answer | None:
        if self.btf.available:
            return None
        return _no("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")

    def _privileged(self) -> Answer | None:
        """
        Return UNKNOWN with a reason if programs may not be loaded.
        """
        held = self.capabilities
        for name in ("CAP_BPF", "CAP_PERFMON"):
            if not capabilities.has(name, held):
                return _unknown(f"{name} is needed to find out")
        return None

    def _cached(self, key: tuple[str, ...], ask: Callable[[], Answer]) -> Answer:
        with self._lock:
            answer = self._answers.get(key)
        if answer is not None:
            return answer
        try:
            answer = ask()
        except NotSupportedError as error:
            answer = _no(str(error))
        except KprobeModulesError as error:
            answer = _unknown(str(error))
        if answer.support is not Support.UNKNOWN:
            with self._lock:
                self._answers[key] = answer
        return answer


_REFUSALS = frozenset(
    {
        ENOTSUPP,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.ENOENT,
        errno.EPERM,
        errno.EACCES,
    }
)

_WHOLE_KINDS: dict[str, Callable[[Features], Answer]] = {
    "kprobe": Features.kprobes,
    "kretprobe": Features.kprobes,
    "fentry": Features.fentry,
    "fexit": Features.fentry,
}

_KINDS: dict[str, Callable[[Features, str], Answer]] = {
    "kprobe": Features.kprobe,
    "kretprobe": Features.kprobe,
    "fentry": Features.fentry_function,
    "fexit": Features.fentry_function,
    "tp_btf": Features.tracepoint_btf,
    "raw_tp": Features.raw_tracepoint,
    "raw_tracepoint": Features.raw_tracepoint,
    "tp": Features.tracepoint,
    "tracepoint": Features.tracepoint,
    "iter": Features.iterator,
}
