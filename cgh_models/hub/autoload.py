"""`cgh autoload`: plain `import timm` knows the weights in this environment, by a `.pth` file in its site-packages.

At its start the interpreter then imports `cgh_models`, which loads nothing but itself. PEP 829 retires imports in
`.pth` files from Python 3.18 on.
"""

import sysconfig
from pathlib import Path

from ..errors import DiskError, printable

_CODE = "try:\n if os.environ.get('CGH_AUTOLOAD') != '0': import cgh_models\nexcept Exception: pass"


def path() -> Path:
    """The file that switches it on, in this environment."""
    return Path(sysconfig.get_path("purelib")) / "cgh_models_autoload.pth"


def switch(on: bool) -> bool:
    """Writes or removes that file; says whether it was there before. Raises DiskError if this user may not."""
    before = path().exists()
    try:
        if on:
            path().write_text(f"import os; exec({_CODE!r})\n", encoding="utf-8")
        else:
            path().unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(
            f"{printable(path())}: cannot be written ({error.strerror}); use a virtual environment of your own"
        ) from error
    return before
