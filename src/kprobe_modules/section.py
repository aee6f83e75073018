# SPDX-License-Identifier: Apache-2.0
"""
What the name of a program's section says about where it attaches.

The names are libbpf's: ``kprobe/do_exit``, ``?fentry/cgroup_exit``,
``tp/sched/sched_switch``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["AttachPoint", "attach_point"]

#: Short and long names of one kind.
_ALIASES: Final = {"raw_tracepoint": "raw_tp", "tp": "tracepoint"}
#: Kinds whose suffix ``.s`` asks for a program that may sleep.
_SLEEPABLE: Final = frozenset(
    ("fentry", "fexit", "fmod_ret", "freplace", "iter", "lsm", "uprobe", "uretprobe")
)


class AttachPoint(NamedTuple):
    """
    A section name taken apart; see `kprobe_modules.spec.ProgramSpec`.
    """

    kind: str
    target: str
    autoload: bool
    sleepable: bool


def attach_point(section: str) -> AttachPoint:
    """
    Take a section name apart.

    Kinds that are not known are passed on as they are; whether they can be
    loaded is for libbpf to say.
    """
    autoload = not section.startswith("?")
    kind, _, target = section.removeprefix("?").partition("/")
    stem, dot, suffix = kind.partition(".")
    sleepable = dot == "." and suffix == "s" and stem in _SLEEPABLE
    if sleepable:
        kind = stem
    return AttachPoint(_ALIASES.get(kind, kind), target, autoload, sleepable)
