"""``python -m ferkit``: the command line without its script."""

from __future__ import annotations

from ferkit.cli import main

if __name__ == "__main__":
    main()
