"""The operator test matrix: at least one row for every rule that is registered."""
