# SPDX-License-Identifier: Apache-2.0
"""
Programs, by descriptor: run once, ask about, measure.

Safe to call from several threads.
"""

from __future__ import annotations

import ctypes
import errno

import attrs

from kprobe_modules.errors import NotSupportedError, PrivilegeError
from kprobe_modules.libbpf import structs
from kprobe_modules.libbpf.descriptor import Descriptor, KernelError, expect
from kprobe_modules.libbpf.provider import Library, in_use

__all__ = ["ProgramInfo", "enable_stats", "prog_info", "test_run"]


@attrs.frozen(eq=False, repr=False)
class ProgramInfo:
    """
    What the kernel says of a program (``struct bpf_prog_info``).

    ``name`` is cut to 15 characters by the kernel; ``load_time`` is in
    nanoseconds since boot; ``run_time_ns`` and ``run_cnt`` only grow while
    statistics are enabled (:func:`enable_stats`).  Fields that the running
    kernel does not know are 0; ``recursion_misses`` came with 5.12.
    """

    id: int
    type: int
    name: str
    tag: str
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    jited_size: int
    translated_size: int
    verified_instructions: int
    load_time: int
    uid: int
    btf_id: int

    @property
    def jited(self) -> bool:
        """
        Whether the program runs as machine code.

        Also false if the asker lacks CAP_BPF and may not know.
        """
        return self.jited_size > 0


def prog_info(fd: int, *, library: Library | None = None) -> ProgramInfo:
    """
    Ask the kernel about a program.

    Raises:
        KernelError: not a program (EINVAL), or not a descriptor (EBADF).
    """
    expect(fd, "bpf-prog")
    found = structs.ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(found))
    c = (library or in_use()).c
    code = c.bpf_obj_get_info_by_fd(fd, ctypes.byref(found), ctypes.byref(size))
    if code < 0:
        raise KernelError(-code, f"program descriptor {fd}: information")
    return ProgramInfo(
        id=found.id,
        type=found.type,
        name=found.name.decode("ascii", "replace"),
        tag=bytes(found.tag).hex(),
        run_time_ns=found.run_time_ns,
        run_cnt=found.run_cnt,
        recursion_misses=found.recursion_misses,
        jited_size=found.jited_prog_len,
        translated_size=found.xlated_prog_len,
        verified_instructions=found.verified_insns,
        load_time=found.load_time,
        uid=found.created_by_uid,
        btf_id=found.btf_id,
    )


def test_run(
    fd: int,
    cpu: int | None = None,  # noqa: PT028 - not a function of pytest's
    context: bytes = b"",  # noqa: PT028
    *,
    packet: bytes = b"",  # noqa: PT028
    repeat: int = 1,  # noqa: PT028
    library: Library | None = None,  # noqa: PT028
) -> int:
    """
    Run a program without attaching it.

    A raw tracepoint program runs once, on a chosen CPU; one of a kind that
    sees packets runs as often as asked, on the CPU of the caller.

    Args:
        fd: the program.
        cpu: the CPU to run on, which must be online; None for the current one.
        context: what the program sees as its arguments (eight bytes each); it
            may be empty if the program reads none.
        packet: what a program for packets sees; at least an Ethernet header.
        repeat: how often to run a program for packets.
        library: any libbpf; this process's own by default.

    Returns:
        what the program returned, the last time.

    Raises:
        KernelError: e.g. the CPU is offline (ENXIO), or the context too short
            (EINVAL).
    """
    options = structs.TestRunOptions(sz=ctypes.sizeof(structs.TestRunOptions))
    if context:
        options.ctx_in = ctypes.cast(ctypes.c_char_p(context), ctypes.c_void_p)
        options.ctx_size_in = len(context)
    if packet:
        options.data_in = ctypes.cast(ctypes.c_char_p(packet), ctypes.c_void_p)
        options.data_size_in = len(packet)
        options.repeat = repeat
    if cpu is not None:
        options.flags = structs.TEST_RUN_ON_CPU
        options.cpu = cpu
    code = (library or in_use()).c.bpf_prog_test_run_opts(fd, ctypes.byref(options))
    if code < 0:
        place = "" if cpu is None else f" on CPU {cpu}"
        raise KernelError(-code, f"program descriptor {fd}: run{place}")
    value: int = options.retval
    return value


# pytest collects what begins with "test_" from the files that import it.
test_run.__test__ = False  # type: ignore[attr-defined]


def enable_stats(*, library: Library | None = None) -> Descriptor:
    """
    Count the runs and the run time of every program of the machine.

    Costs each run some tens of nanoseconds, for as long as the returned
    descriptor is open.

    Raises:
        PrivilegeError: CAP_SYS_ADMIN is missing.
        NotSupportedError: the kernel is older than 5.8.
    """
    fd: int = (library or in_use()).c.bpf_enable_stats(structs.STATS_RUN_TIME)
    if fd in {-errno.EPERM, -errno.EACCES}:
        capability = "CAP_SYS_ADMIN"
        raise PrivilegeError(capability, "to count the run time of programs")
    if fd == -errno.EINVAL:
        feature = "run time statistics of BPF programs"
        raise NotSupportedError(feature)
    if fd < 0:
        what = "run time statistics of BPF programs"
        raise KernelError(-fd, what)
    return Descriptor(fd, "BPF run time statistics")
