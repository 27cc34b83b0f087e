"""Average the checkpoints of a Keras training run after the run.

    saver = ckptavg.CheckpointSaver("run", start_epoch=16, lr_schedule="constant", swa_lr=0.01)
    model.fit(x, y, epochs=30, callbacks=[saver])

    ckptavg.merge("run", "swa.weights.h5")
    model.load_weights("swa.weights.h5")
    ckptavg.update_batch_norm(model, x)

Importing ckptavg imports neither TensorFlow nor Keras; the names that need them import them when
they are first used.
"""

import lazy_loader

# The stub beside this file lists every public name with its home, once: type checkers read it, and
# lazy_loader imports the homes when they are asked for.
__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in __all__ if name not in ("analysis", "tf_keras")]  # modules


def __dir__() -> list[str]:
    return __all__
