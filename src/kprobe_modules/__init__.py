# SPDX-License-Identifier: Apache-2.0
"""
Watch a Linux host from inside the kernel, one module per kind of entity.

::

    import kprobe_modules

    with kprobe_modules.Collector(["processes"]) as collector:
        for record in collector.records(timeout=10):
            print(record)

Importing this package touches neither the kernel nor any module: names are
resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kprobe_modules.attached import ModuleStatus
    from kprobe_modules.collector import Collector
    from kprobe_modules.dispatch import MessageBatch
    from kprobe_modules.errors import KprobeModulesError
    from kprobe_modules.records import (
        Failure,
        Late,
        Log,
        Lost,
        Metrics,
        Record,
        StackTrace,
        Stats,
        Steady,
        Suppressed,
        as_dict,
    )
    from kprobe_modules.registry import Registry
    from kprobe_modules.subscriptions import Subscription
    from kprobe_modules.transport import RingOptions

__all__ = [
    "Collector",
    "Failure",
    "KprobeModulesError",
    "Late",
    "Log",
    "Lost",
    "MessageBatch",
    "Metrics",
    "ModuleStatus",
    "Record",
    "Registry",
    "RingOptions",
    "StackTrace",
    "Stats",
    "Steady",
    "Subscription",
    "Suppressed",
    "as_dict",
]

_HOMES = {
    "Collector": "collector",
    "Failure": "records",
    "KprobeModulesError": "errors",
    "Late": "records",
    "Log": "records",
    "Lost": "records",
    "MessageBatch": "dispatch",
    "Metrics": "records",
    "ModuleStatus": "attached",
    "Record": "records",
    "Registry": "registry",
    "RingOptions": "transport",
    "StackTrace": "records",
    "Stats": "records",
    "Steady": "records",
    "Subscription": "subscriptions",
    "Suppressed": "records",
    "as_dict": "records",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
