# SPDX-License-Identifier: Apache-2.0
"""
Looks at the host and says what works, what does not, and what to do about it.

Works without privileges; then it says which are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kprobe_modules.doctor.findings import Finding, Status, fail
from kprobe_modules.doctor.host import Host
from kprobe_modules.errors import KprobeModulesError, LibbpfNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.config import Options
    from kprobe_modules.doctor import modules
    from kprobe_modules.registry import Registry

__all__ = ["Finding", "Host", "Status", "examine"]


def examine(
    options: Options,
    registry: Registry,
    *,
    host: Host | None = None,
) -> Iterator[Finding]:
    """
    Make every check, in order.

    Args:
        options: which modules, hooks and ring sizes to check for.
        registry: the modules there are.
        host: where to look.
    """
    from kprobe_modules.doctor import kernel, modules
    from kprobe_modules.transport import RingOptions

    host = host or Host()
    yield from kernel.check_kernel(host)
    yield from modules.check_libbpf()
    yield from modules.check_compiled()
    kinds: set[str] = set()
    findings: list[Finding] = []
    try:
        examined = _modules(_names(options, registry), registry, host, options)
    except LibbpfNotFoundError:
        examined = []  # already said
    except KprobeModulesError as error:
        examined = []
        findings.append(fail("modules", str(error), "correct the configuration"))
    for item in examined:
        kinds |= item.kinds
        findings += item.findings
    yield from kernel.check_rights(host, sorted(kinds))
    yield from kernel.check_rings(host, options.pages or RingOptions().pages)
    yield from findings


def _names(options: Options, registry: Registry) -> tuple[str, ...]:
    from kprobe_modules import config

    return config.select(options, registry.names())


def _modules(
    names: tuple[str, ...], registry: Registry, host: Host, options: Options
) -> list[modules.Examined]:
    from kprobe_modules.doctor import modules
    from kprobe_modules.features import Features
    from kprobe_modules.libbpf import find

    features = Features(find(), proc=host.proc, sys=host.sys)
    surroundings = modules.Surroundings(registry, features, host, options).beside(names)
    return [modules.examine_module(name, surroundings) for name in names]
