# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules doctor``.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING

import attrs

from kprobe_modules import config, doctor
from kprobe_modules.commands import options
from kprobe_modules.commands.watching import open_collector
from kprobe_modules.doctor.findings import fail, ok
from kprobe_modules.errors import KprobeModulesError, VerifierError
from kprobe_modules.registry import Registry
from kprobe_modules.sinks.values import readable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from kprobe_modules.config import Options
    from kprobe_modules.doctor import Finding

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Print the findings; 0 when none failed, else 1.
    """
    chosen = options.load(parsed)
    registry = Registry()
    findings = doctor.examine(chosen, registry)
    if parsed.attach:
        findings = chain(findings, _attach_each(chosen, registry))
    failed = False
    for finding in findings:
        failed |= finding.status == "fail"
        if parsed.quiet and finding.status != "fail":
            continue
        text = json.dumps(attrs.asdict(finding)) if parsed.json else readable(str(finding))
        print(text, flush=True)
    return int(failed)


def _attach_each(chosen: Options, registry: Registry) -> Iterator[Finding]:
    """
    Attach each module for real, to a collector of its own, and detach it.
    """
    try:
        names = config.select(chosen, registry.names())
    except KprobeModulesError:
        return  # said already
    for name in names:
        label = f"attach.{name}"
        try:
            with open_collector(chosen, registry) as collector:
                status = collector.attach(name, **chosen.tunables.get(name, {}))
                live = ", ".join(sorted(status.live.values())) or "no hook"
                collector.detach(name)
        except VerifierError as error:
            tail = " | ".join(error.tail().splitlines())
            found = f"{error.program} was refused by the verifier: {tail}"
            yield fail(label, found, f"report this, with the kernel's release, to {name}'s authors")
        except Exception as error:  # noqa: BLE001 - a module may bring any error with it
            yield fail(label, f"{type(error).__name__}: {error}", "see the other findings first")
        else:
            yield ok(label, f"attached {live}; detached")
