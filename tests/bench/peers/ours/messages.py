# SPDX-License-Identifier: Apache-2.0
"""
The generator's messages as a module of ours would take them: records and a handler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from kprobe_modules import objectfile
from kprobe_modules.api import Handler, Record
from tests.bench.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kprobe_modules.objectfile import ObjectSpec

__all__ = ["BenchHandler", "spec"]


@attrs.define
class Beat(Record, module="bench"):
    sequence: int
    value: int
    pid: int
    uid: int


@attrs.define
class Renamed(Record, module="bench"):
    sequence: int
    pid: int
    parent_pid: int
    comm: bytes


@attrs.define
class Moved(Record, module="bench"):
    sequence: int
    from_cgroup: int
    to_cgroup: int
    pid: int
    uid: int
    flags: int
    depth: int


@attrs.define
class Opened(Record, module="bench"):
    sequence: int
    cookie: int
    pid: int
    uid: int
    family: int
    kind: int
    port: int
    backlog: int
    comm: bytes


@attrs.define
class Connected(Record, module="bench"):
    sequence: int
    cookie: int
    pid: int
    uid: int
    family: int
    state: int
    source_port: int
    destination_port: int
    source: bytes
    destination: bytes


@attrs.define
class Exited(Record, module="bench"):
    sequence: int
    start: int
    duration: int
    cgroup_id: int
    pid: int
    parent_pid: int
    uid: int
    exit_code: int
    comm: bytes
    executable: bytes


class BenchHandler(Handler):
    """
    Every message is a record as it stands: the path most messages should take.

    There is no collector here to give it a context, and it asks nothing of one.
    """

    def __init__(self) -> None:
        pass

    direct: ClassVar[Mapping[str, type[Record]]] = {
        "beat": Beat,
        "renamed": Renamed,
        "moved": Moved,
        "opened": Opened,
        "connected": Connected,
        "exited": Exited,
    }


def spec() -> ObjectSpec:
    """
    The generator's object as our reader sees it.
    """
    path = Workshop().generator_object()
    return objectfile.read(path.read_bytes(), path.name)
