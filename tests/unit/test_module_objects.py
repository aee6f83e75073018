# SPDX-License-Identifier: Apache-2.0
"""
What holds for the objects of every module that we ship.
"""

from __future__ import annotations

import pytest
from kprobe_modules.modules import containers, dns, nat, processes, tcp, udp

from kprobe_modules.maps import collector_spec
from kprobe_modules.objectfile import read
from kprobe_modules.registry import Registry
from kprobe_modules.sharing import SharedMaps

MODULES = [
    containers.MODULE,
    dns.MODULE,
    nat.MODULE,
    processes.MODULE,
    tcp.MODULE,
    udp.MODULE,
]
SHOWN = 15
"""Characters of a name that the kernel keeps."""

pytestmark = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


@pytest.fixture(params=["x86_64", "arm64"])
def spec(request, module):
    return read(module.object_bytes(request.param), module.name)


def test_both_objects_say_the_same(module, spec):
    other = read(module.object_bytes("x86_64"), module.name)

    assert spec.messages == other.messages
    assert spec.maps == other.maps
    assert spec.tunables == other.tunables
    assert [(each.name, each.section) for each in spec.programs] == [
        (each.name, each.section) for each in other.programs
    ]


def test_every_program_serves_the_hook_that_the_manifest_says(module, spec):
    hooked = [
        (name, hook.name, hook.tag)
        for hook in module.hooks
        for alternative in hook.alternatives
        for name in alternative.programs
    ]

    assert sorted([*(name for name, _, _ in hooked), *module.own_programs]) == sorted(
        program.name for program in spec.programs
    )
    for name, hook, tag in hooked:
        program = spec.program(name)
        assert (program.hook, program.tag) == (hook, tag), name


def test_names_stay_apart_when_the_kernel_cuts_them(spec):
    names = [program.name[:SHOWN] for program in spec.programs]

    assert len(set(names)) == len(names)


def test_common_maps_are_as_the_collector_has_them(module, spec):
    common = collector_spec()

    for name in module.common_maps:
        assert spec.map(name) == common.map(name)


def test_shared_maps_are_as_their_exporter_has_them(module, spec):
    assert SharedMaps(Registry().find).differences(module, spec) == []
