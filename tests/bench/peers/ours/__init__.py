# SPDX-License-Identifier: Apache-2.0
"""
Our own consumer, as one of the peers.
"""
