"""spa-prune as a step of other programs."""
