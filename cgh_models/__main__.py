"""``python -m cgh_models COMMAND`` is ``cgh COMMAND``."""

from .cli.main import main

if __name__ == "__main__":
    main()
