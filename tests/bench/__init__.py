# SPDX-License-Identifier: Apache-2.0
"""
The benchmark suite: ``make bench``, or ``python -m tests.bench``.

Each part compares us with peers from Debian in the same run, round by round,
over rings that one generator filled with the same messages::

    generator/   the BPF program, and the C program that drives it
    peers/       one consumer per language, all with the same line protocol
    drain.py     full rings, consumer by consumer
    steady.py    a generator running on the other core, at two rates
    emit.py      what one message costs in the kernel, by transport
    watched.py   a loop with and without a module and its peers
    overhead.py  that of fork and exec
    tcp.py       those of connections and of bulk
    udp.py       those of datagrams and of DNS, and what a slot for tail calls costs
    guest.py     the same beside peers that need a kernel with kprobes
    startup.py   import, first record, resident memory

Figures are medians with their minimum and maximum; the ratios are the median
of the rounds' own ratios, because absolute times belong to a machine.
"""
