# SPDX-License-Identifier: Apache-2.0
"""
Containers and the cgroups they live in.
"""
