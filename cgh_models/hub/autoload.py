"""`cgh autoload`: makes plain `import timm` know the weights, by a `.pth` file in site-packages.

At its start the interpreter then imports `cgh_models`; until Python 3.18, see PEP 829.
"""

import sysconfig
from pathlib import Path

from ..errors import DiskError, os_error_as

_CODE = "try:\n if os.environ.get('CGH_AUTOLOAD') != '0': import cgh_models\nexcept Exception: pass"


def path() -> Path:
    """The `.pth` file of this environment."""
    return Path(sysconfig.get_path("purelib")) / "cgh_models_autoload.pth"


def switch(on: bool) -> bool:
    """Writes or removes the file; returns whether it existed. Raises DiskError."""
    existed = path().exists()
    advice = "use a virtual environment of your own"
    with os_error_as(DiskError, path(), "cannot be written", advice):
        if on:
            path().write_text(f"import os; exec({_CODE!r})\n", encoding="utf-8")
        else:
            path().unlink(missing_ok=True)
    return existed
