"""Latency and throughput of a bundle on this machine."""
