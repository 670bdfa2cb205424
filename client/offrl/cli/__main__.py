"""``python -m offrl.cli``: the command line where the script ``offrl`` is not on the path."""

from offrl.cli import main

if __name__ == "__main__":
    main()
