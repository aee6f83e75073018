# SPDX-License-Identifier: Apache-2.0
"""
DNS: queries, responses with their latency, and what was never answered.
"""
