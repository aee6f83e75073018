"""Guests: the kernels that the project promises, booted on this machine's own root file system."""
