# SPDX-License-Identifier: Apache-2.0
"""
ctnetlink in all network namespaces at once.

Each has its own: a socket hears of the namespace that it was made in.  It keeps that from
being removed, so that sockets are closed when nobody else has the namespace any more.
"""

from __future__ import annotations

import os
import select
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

from kprobe_modules.modules.nat.ctnetlink import dump, open_events, read_events, show
from kprobe_modules.modules.nat.netlink import current_namespace

from kprobe_modules.api import network_namespaces

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Container, Iterator

    from kprobe_modules.api import Context

__all__ = ["NETNS", "EventSockets", "Subscription", "dump_all", "show_all"]

NETNS = Struct("<I")

_AT_ONCE = 4096
"""How many messages are read at a time: a tenth of a second's work."""


def dump_all(context: Context, among: Container[int] | None = None) -> list[bytes]:
    """
    Return entries of the translated connections in all network namespaces.

    Args:
        context: the module's; a namespace that refuses is logged.
        among: inode numbers of the namespaces to look at; None for all.
    """
    entries: list[bytes] = []

    def keep(netns: int) -> None:
        if among is None or netns in among:
            entries.extend(dump(netns))

    _everywhere(context, keep)
    return entries


def show_all(context: Context) -> None:
    """
    Have the kernel write all connections of all network namespaces, for programs that watch it.

    Args:
        context: the module's; a namespace that refuses is logged.
    """
    _everywhere(context, lambda _netns: show())


def _everywhere(context: Context, work: Callable[[int], None]) -> None:
    """
    Do something in each network namespace, given its inode number.
    """
    for inside in network_namespaces(context.proc_root):
        with inside:
            netns = current_namespace()
            try:
                work(netns)
            except OSError as error:
                context.log.warning("network namespace %d: %s", netns, error)


def _has_events() -> bool:
    """
    Tell whether the thread's namespace makes events at all (CONFIG_NF_CONNTRACK_EVENTS).
    """
    try:
        return Path("/proc/sys/net/netfilter/nf_conntrack_events").read_text("ascii") != "0\n"
    except FileNotFoundError:
        return False


class EventSockets:
    """
    One socket per network namespace.

    Attributes:
        users: how many `Subscription`s there are; the last one closes all.
    """

    def __init__(self, context: Context) -> None:
        """
        Listen in every namespace there is.

        Raises:
            OSError: when that cannot be done in the thread's own.
        """
        self.users = 0
        self._context = context
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        try:
            self._listen(current_namespace())
            self.follow()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """
        Return a descriptor that is readable while any socket is.
        """
        return self._poll.fileno()

    def _listen(self, netns: int) -> None:
        opened = open_events()
        self._poll.register(opened.fileno(), select.EPOLLIN)
        self._sockets[netns] = opened

    def follow(self) -> tuple[list[int], list[int], list[int]]:
        """
        Listen in namespaces that are new, and no longer in those that are gone.

        Returns:
            The inode numbers of both, and of those that tell nothing.
        """
        met: set[int] = set()
        new, silent = [], []
        for inside in network_namespaces(self._context.proc_root):
            with inside:
                netns = current_namespace()
                met.add(netns)
                if not _has_events():
                    silent.append(netns)
                if netns in self._sockets:
                    continue
                try:
                    self._listen(netns)
                except OSError as error:
                    self._context.log.warning("network namespace %d: %s", netns, error)
                else:
                    new.append(netns)
        gone = [netns for netns in self._sockets if netns not in met]
        for netns in gone:
            self._sockets.pop(netns).close()
        return new, gone, silent

    def read(self) -> Iterator[bytes]:
        """
        Iterate over entries of what was heard.
        """
        readable = {fd for fd, _ in self._poll.poll(0)}
        for netns, opened in self._sockets.items():
            if opened.fileno() in readable:
                yield from read_events(opened, netns, _AT_ONCE)

    def close(self) -> None:
        """
        Listen no more.  Safe to call twice.
        """
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()
        self._poll.close()


class Subscription:
    """
    What the collector waits for; several share the sockets.
    """

    def __init__(self, sockets: EventSockets) -> None:
        self._sockets = sockets
        self._fd = os.dup(sockets.fileno())
        sockets.users += 1

    def fileno(self) -> int:
        """
        Return the descriptor to wait for.
        """
        return self._fd

    def close(self) -> None:
        """
        End it.  Safe to call twice.
        """
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._sockets.users -= 1
            if not self._sockets.users:
                self._sockets.close()
