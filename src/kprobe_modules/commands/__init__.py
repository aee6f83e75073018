# SPDX-License-Identifier: Apache-2.0
"""
The subcommands of ``kprobe-modules``, one file each.
"""
