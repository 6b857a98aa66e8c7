"""HTML pages in one file: templates, thumbnails and drawings, nothing fetched from anywhere."""

import base64
import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import InputError, printable
from ..files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BYTES = 5_000_000  # of a page
_QUALITY = 75  # of a thumbnail's WebP


def library(name: str) -> ModuleType:
    """A library of the extra `report`. Raises InputError with what to type if it is missing."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        missing = f"{name.partition('.')[0]} is not installed"
        raise InputError(f"{missing}, which pages need; type pip install '.[report]'") from error


def write_page(path: Path, template: str, **values: object) -> None:
    """Fills ``templates/<template>`` and writes it atomically; texts in it are escaped.

    Raises InputError if it would be larger than MOST_BYTES, DiskError if it cannot be written.
    """
    jinja2 = library("jinja2")
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    room = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    room.filters["printable"] = printable
    page = room.get_template(template).render(**values).encode("utf-8", "replace")
    if len(page) > MOST_BYTES:
        size = f"{len(page):,} bytes, more than the {MOST_BYTES:,} of a page"
        raise InputError(f"{printable(path)}: {size}; ask for fewer images")
    with atomic(path, len(page)) as temporary:
        temporary.write_bytes(page)


def thumbnail(image: Image.Image, side: int = 64) -> str:
    """The image in a square of ``side`` pixels at most, as the address of an <img>."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY)
    return address(buffer.getvalue(), "webp")


def address(content: bytes, kind: str) -> str:
    """A picture file as the address of an <img>."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def drawing(figure: "Figure") -> str:
    """A figure of matplotlib as SVG that stands in the page; its texts stay texts."""
    markupsafe = library("markupsafe")
    matplotlib = library("matplotlib")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cgh"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return markupsafe.Markup(text[text.index("<svg") :])
