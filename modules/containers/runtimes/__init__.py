# SPDX-License-Identifier: Apache-2.0
"""
What container runtimes and orchestrators know of a container, asked without waiting.

`Enquiries` is the way in: `Enquiries.ask` when a container starts, `Enquiries.take` from the
handler's ``tick``.  Neither waits for anybody.
"""

from __future__ import annotations

from kprobe_modules.modules.containers.runtimes.answers import Answer, pack, unpack
from kprobe_modules.modules.containers.runtimes.enquiries import Enquiries, Socket
from kprobe_modules.modules.containers.runtimes.metadata import (
    EcsTask,
    KubernetesContainer,
    Limits,
    Metadata,
    Network,
    NomadTask,
    Port,
)

__all__ = [
    "Answer",
    "EcsTask",
    "Enquiries",
    "KubernetesContainer",
    "Limits",
    "Metadata",
    "Network",
    "NomadTask",
    "Port",
    "Socket",
    "pack",
    "unpack",
]
