# SPDX-License-Identifier: Apache-2.0
"""
The kernels that every change is proven on.  This is the one list.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Kernel:
    """
    A kernel of the list.

    ``suites`` are Debian suites, of which the first holds the kernel and the others may hold a
    newer build of it.  ``why`` says what this kernel proves that the others do not.
    """

    name: str
    suites: tuple[str, ...]
    why: str


KERNELS = (
    Kernel(
        "5.10",
        ("bullseye", "bullseye-security"),
        "the oldest promised: no BTF for kernel modules, no bpf_cookie, cgroup_exit is there",
    ),
    Kernel(
        "6.1",
        ("bookworm", "bookworm-updates", "bookworm-security"),
        "long-term: task iterators with options, fentry on kernel modules",
    ),
    Kernel(
        "6.12",
        ("trixie", "trixie-updates", "trixie-security"),
        "long-term: the newest of Debian's stable releases",
    ),
    Kernel(
        "7.x",
        ("trixie-backports",),
        "the newest that Debian builds: cgroup_exit is gone",
    ),
)


def find(name: str) -> Kernel:
    """
    Return the kernel called ``name``; raise :exc:`LookupError` that lists the names otherwise.
    """
    wanted = {name, f"{name}.x"}
    for kernel in KERNELS:
        if kernel.name in wanted:
            return kernel
    names = ", ".join(kernel.name for kernel in KERNELS)
    msg = f"no kernel named {name} in tests/vm/kernels.py: it lists {names}"
    raise LookupError(msg)
