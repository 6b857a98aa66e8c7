"""Damaged image files of every format: pixels or a BadImage, within a second and a GiB."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from children import Problem, stated, watched
from mutations import damaged
from odd_image_table import CASES

from cgh_models.data.decode import decode_rgb, open_file
from cgh_models.errors import BadImage

WHAT = "damaged image files of the formats above, at full size and as thumbnails"
LAW = "8-bit RGB pixels or a BadImage; at most 1 s of CPU time and 1 GiB each"
QUICK, MANY = 1_000, 20_000
FILES = [case for case in CASES if isinstance(case.content, bytes) and len(case.content) < 2**17]


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """Damages one file after the other."""
    with tempfile.TemporaryDirectory() as folder:

        def try_one(number: int) -> Problem:
            generator = random.Random(f"image {number}")
            case, other = FILES[number % len(FILES)], generator.choice(FILES)
            path = Path(folder, case.name)
            path.write_bytes(damaged(case.content, generator, other.content))  # pyright: ignore
            try:
                with open_file(path) as file:
                    image = decode_rgb(file, generator.choice((0, 4)))
            except Exception as error:
                return stated(error, (BadImage,))
            finally:
                path.unlink()
            return "" if image.mode == "RGB" and image.width else f"{image.mode}, {image.size}"

        for number, problem in watched(range(count), try_one):
            yield f"image {number}, {FILES[number % len(FILES)].name} damaged", problem
