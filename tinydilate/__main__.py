"""``python -m tinydilate`` is the command ``tinydilate``."""

from tinydilate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
