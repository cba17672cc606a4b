"""Reconstruction: refit the weights that are left, so that layers compute what they did."""
