"""Knowledge distillation as a plugin of stock nnU-Net v2."""

import os as _os

__version__ = "0.1.0"

# An installed package contains trainers/ and plans/; in a checkout they lie one folder above it.
_checkout = _os.path.dirname(_os.path.dirname(__file__))
if not _os.path.isdir(_os.path.join(__path__[0], "trainers")):
    __path__.append(_checkout)
