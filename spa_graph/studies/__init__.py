"""Questions about networks, each answered with data that is ready for JSON."""
