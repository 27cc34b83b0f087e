"""The files of Keras 3, `.weights.h5` and `.keras`, held against the contracts."""

import keras

from ckptavg.formats import ModelConfig, open_writer
from tests.formats.contract import ReaderContract, WriterContract
from tests.helpers.files import arrays
from tests.helpers.models import evaluator, randomize, tiny_model


class TestWeightsH5(ReaderContract, WriterContract):
    suffix = ".weights.h5"

    def make(self, folder, seed, name="ckpt"):
        path = folder / f"{name}{self.suffix}"
        randomize(evaluator(), seed).save_weights(path)
        return path, arrays(path)

    def load(self, path):
        model = tiny_model()
        model.load_weights(path)
        copy = path.with_name("loaded.weights.h5")
        keras.saving.save_weights(model, copy, objects_to_skip=[model.optimizer])
        found = arrays(copy)
        copy.unlink()
        return found


class TestKerasArchive(ReaderContract, WriterContract):
    suffix = ".keras"

    def make(self, folder, seed, name="ckpt"):
        path = folder / f"{name}{self.suffix}"
        model = randomize(evaluator(), seed)
        model.save(path)
        self.config = ModelConfig.read(path)
        return path, self._arrays_of(model, folder)

    def load(self, path):
        return self._arrays_of(keras.saving.load_model(path), path.parent)

    def open_writer(self, path, structure, **options):
        return open_writer(path, structure, self.config, **options)

    def _arrays_of(self, model, folder):
        copy = folder / "loaded.weights.h5"
        model.save_weights(copy)
        found = arrays(copy)
        copy.unlink()
        return found
