"""The methods, by the name that ``--method`` takes."""

from .cgh import CGH
from .ressl import ReSSL

METHODS = {method.name: method for method in (CGH, ReSSL)}
