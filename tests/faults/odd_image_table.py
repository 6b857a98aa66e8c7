"""The table of odd image files: name, content, and the pixels or the reason that are right."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import odd_pngs
import odd_tiffs
from odd_pngs import chunk, png, saved
from odd_tiffs import tiff
from PIL import Image, ImageOps, features


class Case(NamedTuple):
    """A file, and what is right for it: ``pixels``, or a reason that contains ``refused``."""

    name: str
    what: str
    content: bytes | str  # or what it is instead of a file
    pixels: np.ndarray | None = None  # (H, W, 3); None: refused
    refused: str | None = None  # also where pixels are stated: then either is right
    tolerance: int = 0


CASES: list[Case] = []
HEIGHT, WIDTH = 12, 16
FLAG = "--pixel-range"
# Values whose shares of the range 255 are whole numbers, whatever the number of bits.
QUARTERS = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 5 % 4  # 0 to 3
GREY = (QUARTERS * 85).astype(np.uint8)
RAMP = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    """Three equal bands."""
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, 2)


def read(name: str, what: str, content: bytes, pixels: np.ndarray, **rest: object) -> None:
    """A file that is read."""
    CASES.append(Case(name, what, content, pixels, **rest))  # pyright: ignore


def refuse(name: str, what: str, content: bytes | str, reason: str = "") -> None:
    """A file that is refused."""
    CASES.append(Case(name, what, content, None, reason))


def as_pillow(content: bytes) -> np.ndarray:
    """The pixels that Pillow decodes; for lossy formats."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


# --- PNG
MASK = np.where(QUARTERS[:, :, None] > 1, 255, 0).astype(np.uint8)  # alpha: seen or not
ON_WHITE = np.where(MASK > 0, RAMP, WHITE)
RGBA = np.concatenate([RAMP, MASK], 2)
PALETTE = Image.fromarray(GREY).convert("P")
PLAIN = png(RAMP)
read("rgb.png", "8-bit RGB", PLAIN, RAMP)
read("grey.png", "8-bit grey", saved(GREY, "PNG"), rgb(GREY))
read("palette.png", "palette", saved(PALETTE, "PNG"), rgb(GREY))
read("bits.png", "1-bit", png(QUARTERS % 2, 1, odd_pngs.GREY), rgb(QUARTERS % 2 * 255))
read("two.png", "2-bit grey", png(QUARTERS, 2, odd_pngs.GREY), rgb(GREY))
read("four.png", "4-bit grey", png(QUARTERS * 5, 4, odd_pngs.GREY), rgb(GREY))
read("opaque.png", "alpha 255", saved(np.dstack([RAMP, WHITE[:, :, 0]]), "PNG"), RAMP)
read("alpha.png", "alpha 0 and 255", saved(RGBA, "PNG"), ON_WHITE)
GREY_ALPHA = np.dstack([GREY, MASK[:, :, 0]])
GREY_ON_WHITE = np.where(MASK > 0, rgb(GREY), WHITE)
read("la.png", "grey and alpha", png(GREY_ALPHA, 8, odd_pngs.GREY_ALPHA), GREY_ON_WHITE)
CLEAR = {"transparency": 85}
read("clear_p.png", "a clear colour of a palette", saved(PALETTE, "PNG", **CLEAR),
     rgb(np.where(GREY == 85, 255, GREY)))  # fmt: skip
read(
    "clear_l.png", "a clear grey", saved(GREY, "PNG", **CLEAR), rgb(np.where(GREY == 85, 255, GREY))
)
BLACK = np.where(QUARTERS[:, :, None] == 0, 0, RAMP).astype(np.uint8)
read("clear_rgb.png", "a clear RGB", saved(BLACK, "PNG", transparency=(0, 0, 0)),
     np.where(BLACK.any(2, keepdims=True), BLACK, 255).astype(np.uint8))  # fmt: skip
read("clear_two.png", "a clear grey of 2 bits",
     png(QUARTERS, 2, odd_pngs.GREY, chunk(b"tRNS", b"\0\1")),
     rgb(np.where(QUARTERS == 1, 255, GREY)))  # fmt: skip
read("adam7.png", "interlaced", png(RAMP, interlaced=True), RAMP)
for bits in (10, 12, 14, 16):
    DEEP = QUARTERS * ((2**bits - 1) // 3)
    deep = png(DEEP, 16, odd_pngs.GREY)
    read(f"grey{bits}.png", f"{bits}-bit grey in 16 bits", deep, rgb(GREY), refused=FLAG)
    deep = png(DEEP[:, :, None].repeat(3, 2), 16)
    read(f"rgb{bits}.png", f"{bits}-bit RGB in 16 bits", deep, rgb(GREY), refused=FLAG)
DEEP = np.dstack([QUARTERS * 21845, MASK[:, :, 0].astype(int) * 257])
read("la16.png", "16-bit grey and alpha", png(DEEP, 16, odd_pngs.GREY_ALPHA), GREY_ON_WHITE)
DEEP = RGBA.astype(int) * 257
read("rgba16.png", "16-bit RGB and alpha", png(DEEP, 16, odd_pngs.RGB_ALPHA), ON_WHITE)
read("dark16.png", "16-bit black", png(QUARTERS * 0, 16, odd_pngs.GREY), WHITE * 0, refused="")
LONG_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2**21))
BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * (80 * 2**20)))
read("text.png", "2 MB of text", png(RAMP, before=LONG_TEXT), RAMP)
read("text_after.png", "2 MB of text after the pixels", png(RAMP, after=LONG_TEXT), RAMP)
read("bomb.png", "80 MB of text", png(RAMP, before=BOMB), RAMP, refused="")
read("profile.png", "a damaged profile", png(RAMP, before=chunk(b"iCCP", b"x\0\0bad")), RAMP)
read("gamma.png", "a gamma", png(RAMP, before=chunk(b"gAMA", struct.pack(">I", 45455))), RAMP)
EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
read("turned.png", "EXIF orientation 6", png(RAMP, before=chunk(b"eXIf", EXIF)), np.rot90(RAMP, -1))
read("exif.png", "damaged EXIF", png(RAMP, before=chunk(b"eXIf", b"MM\0*\xff\xff")), RAMP)
FRAMES = {"save_all": True, "append_images": [Image.fromarray(WHITE)]}
read("film.png", "two frames", saved(RAMP, "PNG", **FRAMES), RAMP)
read("tail.png", "bytes after its end", PLAIN + b"tail" * 99, RAMP)
read("png.jpg", "a PNG with another name", PLAIN, RAMP)
refuse("checksum.png", "a wrong checksum of its header", PLAIN[:29] + b"\0\0\0\0" + PLAIN[33:])
refuse("half.png", "cut in the middle", PLAIN[: len(PLAIN) // 2])
refuse("header.png", "cut in the header", PLAIN[:20])
refuse("none.png", "no pixels", odd_pngs.MAGIC + PLAIN[8:33] + chunk(b"IEND", b""))
refuse("short.png", "fewer rows than said", png(RAMP, size=(WIDTH, 4 * HEIGHT)))
refuse("zero.png", "0 pixels wide", png(RAMP, size=(0, HEIGHT)))
refuse("huge.png", "100,000 x 100,000 pixels", png(RAMP, size=(100_000, 100_000)))

# --- JPEG
PHOTO = Image.fromarray(RAMP).resize((64, 48), Image.Resampling.BICUBIC)
JPEG = saved(PHOTO, "JPEG")
read("plain.jpg", "baseline", JPEG, as_pillow(JPEG))
for name, options in (
    ("progressive", {"progressive": True}),
    ("full", {"subsampling": 0}),
    ("restart", {"restart_marker_blocks": 1}),
    ("comment", {"comment": b"c" * 60_000}),
    ("dpi", {"dpi": (7, 9)}),
):
    content = saved(PHOTO, "JPEG", **options)
    read(f"{name}.jpg", f"{name}", content, as_pillow(content))
for mode in ("L", "CMYK"):
    content = saved(PHOTO.convert(mode), "JPEG")
    read(f"{mode}.jpg", f"mode {mode}", content, as_pillow(content))
UPRIGHT = as_pillow(JPEG)
TURNS = {
    1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1), 6: np.rot90(UPRIGHT, -1),
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(UPRIGHT), 9: UPRIGHT,
}  # fmt: skip
for number, pixels in TURNS.items():
    tags = Image.Exif()
    tags[0x0112] = number
    content = saved(PHOTO, "JPEG", exif=tags)
    read(f"turn{number}.jpg", f"EXIF orientation {number}", content, pixels)
content = saved(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
read("exif.jpg", "damaged EXIF", content, UPRIGHT)
read("tail.jpg", "bytes after its end", JPEG + b"tail" * 99, UPRIGHT)
read("jpeg.png", "a JPEG with another name", JPEG, UPRIGHT)
read("UPPER.JPG", "a name in capitals", JPEG, UPRIGHT)
content = saved(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)])
read("stereo.jpg", "two pictures (MPO)", content, UPRIGHT)
refuse("half.jpg", "cut in the middle", JPEG[: len(JPEG) // 2])
refuse("start.jpg", "cut after 4 bytes", JPEG[:4])

# --- films and palettes
read("still.gif", "GIF", saved(GREY, "GIF"), rgb(GREY))
NEXT = Image.fromarray(255 - GREY)
content = saved(GREY, "GIF", save_all=True, append_images=[NEXT])
read("film.gif", "a GIF of two pictures", content, rgb(GREY))
read("clear.gif", "a GIF with a clear colour", saved(PALETTE, "GIF", transparency=0),
     rgb(np.where(GREY == 0, 255, GREY)))  # fmt: skip
read("gif.png", "a GIF with another name", saved(GREY, "GIF"), rgb(GREY))
refuse("half.gif", "cut in the middle", saved(Image.fromarray(RAMP), "GIF")[:-40])
if features.check("webp"):
    LOSSLESS = {"lossless": True, "exact": True}
    content = saved(RAMP, "WEBP", **LOSSLESS)
    read("lossless.webp", "lossless", content, RAMP)
    read("alpha.webp", "alpha 0 and 255", saved(RGBA, "WEBP", **LOSSLESS), ON_WHITE)
    film = saved(RAMP, "WEBP", **LOSSLESS, **FRAMES)
    read("film.webp", "two pictures", film, RAMP)
    lossy = saved(PHOTO, "WEBP")
    read("lossy.webp", "lossy", lossy, as_pillow(lossy))
    refuse("half.webp", "cut in the middle", lossy[: len(lossy) // 2])

# --- BMP and others that Pillow writes
BMP = saved(RAMP, "BMP")
read("rgb.bmp", "24-bit", BMP, RAMP)
read("palette.bmp", "palette", saved(PALETTE, "BMP"), rgb(GREY))
read("bits.bmp", "1-bit", saved(Image.fromarray(GREY > 85), "BMP"), rgb((GREY > 85) * 255))
upside_down = BMP[:22] + struct.pack("<i", -HEIGHT) + BMP[26:]
read("down.bmp", "rows from the top", upside_down, RAMP[::-1])
refuse("half.bmp", "cut in the middle", BMP[: len(BMP) // 2])
for kind, name in (("PPM", "a.ppm"), ("TGA", "a.tga"), ("SGI", "a.sgi"), ("PCX", "a.pcx"),
                   ("JPEG2000", "a.jp2"), ("DDS", "a.dds"), ("IM", "a.im"), ("QOI", "a.qoi"),
                   ("ICO", "a.ico")):  # fmt: skip
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    options |= {"sizes": [(WIDTH, HEIGHT)]} if kind == "ICO" else {}
    read(name, kind, saved(RAMP, kind, **options), RAMP)
read("run.tga", "TGA, run lengths", saved(RAMP, "TGA", compression="tga_rle"), RAMP)
read("grey.pgm", "PGM", saved(GREY, "PPM"), rgb(GREY))
read("bits.pbm", "PBM", saved(Image.fromarray(GREY > 85), "PPM"), rgb((GREY > 85) * 255))
size = f"{WIDTH} {HEIGHT}".encode()
for most in (15, 255, 4095, 65535):
    kind = ">u2" if most > 255 else "u1"
    content = (
        b"P5 " + size + f" {most}\n".encode() + (QUARTERS * (most // 3)).astype(kind).tobytes()
    )
    rest = {"refused": FLAG} if most > 255 else {}
    read(f"most{most}.pgm", f"PGM of values to {most}", content, rgb(GREY), **rest)
if features.check("avif"):
    content = saved(PHOTO, "AVIF", quality=90)
    read("photo.avif", "AVIF", content, as_pillow(content))

# --- TIFF
read("rgb.tif", "8-bit RGB", tiff(RAMP, odd_tiffs.RGB), RAMP)
read("big_endian.tif", "big-endian", tiff(RAMP, odd_tiffs.RGB, order=">"), RAMP)
for name in ("tiff_lzw", "tiff_deflate", "packbits"):
    read(f"{name}.tif", name, saved(RAMP, "TIFF", compression=name), RAMP)
content = saved(Image.fromarray(GREY > 85), "TIFF", compression="group4")
read("fax.tif", "1-bit, group 4", content, rgb((GREY > 85) * 255))
read("pages.tif", "two pages", saved(RAMP, "TIFF", **FRAMES), RAMP)
read("big.tif", "BigTIFF", saved(RAMP, "TIFF", big_tiff=True), RAMP)
read("white.tif", "white is 0", tiff(GREY, 0), rgb(255 - GREY))
read("turned.tif", "orientation 6", tiff(RAMP, odd_tiffs.RGB, orientation=6), np.rot90(RAMP, -1))
read("planes.tif", "separate bands", tiff(RAMP, odd_tiffs.RGB, separate=True), RAMP, refused="")
read("alpha.tif", "declared alpha", tiff(RGBA, odd_tiffs.RGB, extra=2), ON_WHITE)
for bits in (12, 16):
    for order, name in (("<", "little"), (">", "big")):
        DEEP = (QUARTERS * ((2**bits - 1) // 3)).astype(np.uint16)
        content = tiff(DEEP, odd_tiffs.GREY, order=order)
        read(f"grey{bits}{name}.tif", f"{bits}-bit grey", content, rgb(GREY), refused=FLAG)
DEEP = RAMP.astype(np.uint16) * 257
read("rgb16.tif", "16-bit RGB", tiff(DEEP, odd_tiffs.RGB), RAMP, refused=FLAG)
refuse("float.tif", "floats to 1", tiff(GREY.astype(np.float32) / 255, odd_tiffs.GREY), FLAG)
refuse("double.tif", "doubles", tiff(GREY.astype(np.float64), odd_tiffs.GREY))
refuse("int32.tif", "32-bit integers", tiff(GREY.astype(np.int32) * 2**20, odd_tiffs.GREY), FLAG)
refuse("int16.tif", "negative integers", tiff(GREY.astype(np.int16) * -99, odd_tiffs.GREY))
refuse("four.tif", "a fourth band that is no alpha", tiff(RGBA, odd_tiffs.RGB, extra=0))
refuse("four_undeclared.tif", "a fourth band, undeclared", tiff(RGBA, odd_tiffs.RGB))
refuse("five.tif", "five bands", tiff(np.dstack([RGBA, GREY]), odd_tiffs.RGB))
refuse("two.tif", "two bands", tiff(GREY_ALPHA, odd_tiffs.GREY))
refuse("beyond.tif", "pixels beyond its end", tiff(RAMP, odd_tiffs.RGB, offset=9999))
refuse("half.tif", "cut in the middle", tiff(RAMP, odd_tiffs.RGB)[:200])

# --- no images, or none that may be opened
refuse("empty.jpg", "0 bytes", b"", "0 bytes")
refuse("text.jpg", "a text", b"this is no image", "not readable as an image")
refuse("page.jpg", "an HTML page", b"<!DOCTYPE html><html><body>404</body></html>")
refuse("numbers.png", "numpy's format", b"\x93NUMPY\x01\0v\0{'descr': '|u1', }\n" + b"\0" * 99)
refuse("archive.jpg", "a zip", b"PK\x03\x04" + b"\0" * 60)
refuse("drawing.png", "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
refuse("drawing.wmf", "WMF", b"\xd7\xcd\xc6\x9a" + b"\0" * 90)
refuse("photo.heic", "HEIC without its plug-in", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99)
refuse("photo.jxl", "JPEG XL without its plug-in", b"\xff\x0a" + b"\0" * 99)
refuse("pipe.jpg", "a named pipe", "pipe")
refuse("folder.jpg", "a folder", "folder")
refuse("link.jpg", "a link to nothing", "link")
