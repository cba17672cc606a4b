"""Frontends: what turns a framework's network into a `Graph`, and a plan into a smaller network."""
