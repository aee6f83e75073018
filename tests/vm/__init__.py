# SPDX-License-Identifier: Apache-2.0
"""
Guests: the kernels that the project promises, booted on this machine's own root file system.
"""
