"""Pictures and pages of what was measured; they need `pip install 'spa-prune[report]'`."""
