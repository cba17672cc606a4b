"""Whole networks: pruned to half of their FLOPs, and checked from outside."""
