# SPDX-License-Identifier: Apache-2.0
"""
Read what ``GET /containers/<id>/json`` returns: Docker's Engine API, and Podman's compatible one.

The text comes from a daemon that may be broken or somebody else's: whatever has not
the type it should have is left out, and what is kept is bounded.
"""

from __future__ import annotations

import json
from typing import Any, Final

from kprobe_modules.modules.containers.runtimes import orchestrators
from kprobe_modules.modules.containers.runtimes.metadata import Limits, Metadata, Network

from kprobe_modules.api import KprobeModulesError

__all__ = ["NonsenseError", "read_inspection"]

TEXT_LENGTH: Final = 4096
"""Characters kept of a text other than a label."""
LABELS_LENGTH: Final = 65536
"""Characters kept of all labels together."""
NETWORKS: Final = 64

_INT64: Final = 1 << 63


class NonsenseError(KprobeModulesError):
    """
    An answer that is no answer to what was asked.
    """


def read_inspection(body: bytes, container_id: str) -> Metadata:
    """
    Return what an answer says of the container that it was asked for.

    Raises:
        NonsenseError: when it is no JSON object, or one about another container.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = f"expected JSON, found {body[:40]!r}: {str(error)[:200]}"
        raise NonsenseError(msg) from None
    if not isinstance(said, dict):
        msg = f"expected a JSON object, found {type(said).__name__}"
        raise NonsenseError(msg)
    if said.get("Id") != container_id:
        msg = f"expected container {container_id}, found {str(said.get('Id'))[:80]!r}"
        raise NonsenseError(msg)
    config, host = _object(said, "Config"), _object(said, "HostConfig")
    labels, dropped = _labels(_object(config, "Labels"))
    name = _text(said, "Name")
    return Metadata(
        container_id=container_id,
        name=name.removeprefix("/") if name else None,
        image=_text(config, "Image") or _text(said, "ImageName"),
        image_id=_text(said, "Image"),
        labels=labels,
        labels_dropped=dropped,
        networks=_networks(_object(said, "NetworkSettings")),
        network_mode=_text(host, "NetworkMode"),
        limits=_limits(host),
        pid=_positive(_object(said, "State"), "Pid"),
        kubernetes=orchestrators.kubernetes(labels),
        ecs=orchestrators.ecs(labels),
        nomad=orchestrators.nomad(_texts(config, "Env")),
    )


def _limits(host: dict[str, Any]) -> Limits:
    swap = _integer(host, "MemorySwap")
    swappiness = _integer(host, "MemorySwappiness")
    return Limits(
        memory=_positive(host, "Memory"),
        memory_reservation=_positive(host, "MemoryReservation"),
        # -1 is an answer here: no limit was chosen on purpose.
        memory_swap=swap if swap == -1 else _positive(host, "MemorySwap"),
        # -1 is Docker's own word for "not chosen"; 0 is a choice.
        memory_swappiness=swappiness if swappiness is not None and swappiness >= 0 else None,
        cpu_shares=_positive(host, "CpuShares"),
        cpu_period=_positive(host, "CpuPeriod"),
        cpu_quota=_positive(host, "CpuQuota"),
        nano_cpus=_positive(host, "NanoCpus"),
        cpuset_cpus=_text(host, "CpusetCpus"),
        pids=_positive(host, "PidsLimit"),
    )


def _networks(settings: dict[str, Any]) -> tuple[Network, ...]:
    found = []
    for name, network in list(_object(settings, "Networks").items())[:NETWORKS]:
        if isinstance(network, dict):
            found.append(
                Network(
                    _clean(name),
                    _text(network, "IPAddress"),
                    _text(network, "GlobalIPv6Address"),
                    _text(network, "MacAddress"),
                )
            )
    if not found and _text(settings, "IPAddress"):
        # Before API version 1.21 there was one network, without a name.
        found.append(
            Network(
                "",
                _text(settings, "IPAddress"),
                _text(settings, "GlobalIPv6Address"),
                _text(settings, "MacAddress"),
            )
        )
    return tuple(found)


def _labels(said: dict[str, Any]) -> tuple[dict[str, str], int]:
    """
    Return labels while there is room, and how many there was no room for.
    """
    kept: dict[str, str] = {}
    dropped = 0
    room = LABELS_LENGTH
    for key, value in said.items():
        size = len(key) + len(value) if isinstance(value, str) else room + 1
        if size > room:
            dropped += 1
            continue
        room -= size
        kept[_clean(key)] = _clean(value)
    return kept, dropped


def _clean(text: str) -> str:
    r"""
    Replace halves of surrogate pairs: JSON can say ``"\ud800"``, UTF-8 can't.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def _object(said: dict[str, Any], key: str) -> dict[str, Any]:
    value = said.get(key)
    return value if isinstance(value, dict) else {}


def _text(said: dict[str, Any], key: str) -> str | None:
    value = said.get(key)
    return _clean(value[:TEXT_LENGTH]) if isinstance(value, str) and value else None


def _texts(said: dict[str, Any], key: str) -> list[str]:
    value = said.get(key)
    return (
        [_clean(item) for item in value if isinstance(item, str)] if isinstance(value, list) else []
    )


def _integer(said: dict[str, Any], key: str) -> int | None:
    value = said.get(key)
    return value if type(value) is int and -_INT64 <= value < _INT64 else None


def _positive(said: dict[str, Any], key: str) -> int | None:
    value = _integer(said, key)
    return value if value is not None and value > 0 else None
