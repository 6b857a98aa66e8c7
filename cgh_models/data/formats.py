"""The formats of images that are read: what Pillow and its plug-ins decode, as a stated list."""

import contextlib
import importlib

from PIL import Image

# Plug-ins of Pillow that register themselves, HEIF by a call.
for _name in ("pillow_avif", "pillow_jxl", "pillow_heif"):
    with contextlib.suppress(ImportError):
        _plug_in = importlib.import_module(_name)
        if _name == "pillow_heif":
            _plug_in.register_heif_opener()
Image.init()

# Still pictures that are decoded in this process, in the order in which they are tried: the common
# ones first, those that hardly mark their files last.
_PICTURES = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "JXL", "JPEG2000", "PPM", "QOI"),
    *("PSD", "ICO", "CUR", "ICNS", "DDS", "SGI", "FITS", "DIB", "BLP", "DCX", "FLI", "FTEX", "GBR"),
    *("IM", "IMT", "MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "SPIDER", "SUN", "XBM", "XPM"),
    *("XVTHUMB", "TGA"),
)
# Formats in which few bytes may hold many pixels; Python code decodes some of the others, slowly.
DENSE = {*_PICTURES[: _PICTURES.index("PPM")], "MPO"}
# What else Pillow knows: EPS starts another program, WMF asks the system, IPTC, FPX and MIC hold
# files of any format, the others it cannot read.
NOT_READ = {"EPS", "WMF", "IPTC", "FPX", "MIC", "BUFR", "GRIB", "HDF5", "MPEG"}
FORMATS = [name for name in _PICTURES if name in Image.OPEN]
# Endings of files that may hold images; what a file holds is seen from its bytes alone.
EXTENSIONS = frozenset(
    ending for ending, name in Image.registered_extensions().items() if name in {*FORMATS, "MPO"}
)
# Those that versions left out which read fewer formats, so that a run of theirs knows fewer files.
FURTHER = EXTENSIONS - {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
EXPECTED = "expected files ending in .jpg, .png, .webp, .tif, .gif or as other formats of Pillow do"
