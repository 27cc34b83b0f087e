"""BatchNorm statistics of a model, re-estimated from data.

Names are imported when they are first used, so that `BatchNormOptions` needs no Keras.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
