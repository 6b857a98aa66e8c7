"""The methods, by the name that ``--method`` takes."""

from .byol import BYOL
from .cgh import CGH
from .lewel import LEWEL, LEWELM
from .mnclglf import MNCLGLF
from .moco_v2 import MoCoV2
from .nnclr import NNCLR
from .ressl import ReSSL

METHODS = {method.name: method for method in (CGH, LEWEL, LEWELM, MNCLGLF, ReSSL, MoCoV2, BYOL, NNCLR)}
