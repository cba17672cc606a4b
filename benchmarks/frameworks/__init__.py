"""Networks exported by other frameworks, and what pruning makes of them."""
