"""`python -m spa_graph` is the `spa-prune` command."""

from spa_graph.cli import main

if __name__ == "__main__":
    main()
