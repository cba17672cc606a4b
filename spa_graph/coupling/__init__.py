"""The axis algebra: what each operator says about index spaces, solved once for a whole network."""
