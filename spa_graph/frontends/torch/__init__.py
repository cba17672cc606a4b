"""PyTorch modules -> `Graph`, and applying edits to them."""
