"""Which tensors of Keras 3 files are optimizer state, in files that Keras wrote."""

from collections import Counter
from functools import cache

import keras
import numpy as np
import pytest

from ckptavg import merge
from ckptavg.formats import open_reader
from ckptavg.merging.tensor_rules import DROP

OPTIMIZERS = keras.optimizers


class Pair(keras.Model):
    """Two networks, as in a GAN, and the layers of a test."""

    def __init__(self, **layers):
        super().__init__(name="pair")
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
        self.discriminator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])

    def call(self, inputs):
        return self.discriminator(self.generator(inputs))


def pair(**layers) -> Pair:
    model = Pair(**layers)
    model.build((None, 3))
    return model


@cache
def plain() -> frozenset[str]:
    """What a file without optimizers holds."""
    return frozenset(
        f"{part}/layers/dense/vars/{number}"
        for part in ("generator", "discriminator")
        for number in range(2)
    )


def kept(model, path) -> set[str]:
    model.save_weights(path, overwrite=True)
    with open_reader(path) as reader:
        return {*reader.structure.model_tensors}


MAKERS = {
    "adam": OPTIMIZERS.Adam,
    "amsgrad": lambda: OPTIMIZERS.Adam(amsgrad=True),
    "adamw": OPTIMIZERS.AdamW,
    "sgd": OPTIMIZERS.SGD,
    "momentum": lambda: OPTIMIZERS.SGD(momentum=0.9),
    "rmsprop": OPTIMIZERS.RMSprop,
    "centered": lambda: OPTIMIZERS.RMSprop(momentum=0.9, centered=True),
    "adafactor": OPTIMIZERS.Adafactor,
    "nadam": OPTIMIZERS.Nadam,
    "lion": OPTIMIZERS.Lion,
    "ftrl": OPTIMIZERS.Ftrl,
    "ema": lambda: OPTIMIZERS.Adam(use_ema=True),
    "accumulating": lambda: OPTIMIZERS.Adam(gradient_accumulation_steps=2),
    "scaled": lambda: OPTIMIZERS.LossScaleOptimizer(OPTIMIZERS.Adam()),
    "scheduled": lambda: OPTIMIZERS.SGD(
        OPTIMIZERS.schedules.ExponentialDecay(0.1, 1, 0.9), momentum=0.9
    ),
    "named": lambda: OPTIMIZERS.Adam(name="of_the_critic"),
}


@pytest.mark.parametrize(
    ("kind", "suffix"), [*((kind, ".weights.h5") for kind in MAKERS), ("adam", ".weights.json")]
)
def test_optimizers_are_found_wherever_they_hang(tmp_path, kind, suffix):
    model = pair()
    model.d_optimizer, model.optG = MAKERS[kind](), MAKERS[kind]()
    model.optimizers = [OPTIMIZERS.Adam()]  # in a list, and never built
    model.generator.own = OPTIMIZERS.SGD()
    for optimizer in (model.d_optimizer, model.optG):
        optimizer.build(model.trainable_variables)
    path = tmp_path / f"pair{suffix}"
    limit = {"max_shard_size": 0.001} if suffix == ".weights.json" else {}
    model.save_weights(path, **limit)
    with open_reader(path) as reader:
        assert {*reader.structure.model_tensors} == plain()
        assert {"d_optimizer", "optG", "optimizers/adam"} <= reader.structure.optimizer
        assert "generator/own/vars/1" in reader.structure.optimizer


class Counting(keras.layers.Layer):
    """Stores what an optimizer stores: a count, a number, and copies of the weights."""

    def __init__(self, shapes, **options):
        super().__init__(**options)
        self.count = self.add_weight(shape=(), dtype="int64", trainable=False)
        self.rate = self.add_weight(shape=(), trainable=False)
        self.copies = [self.add_weight(shape=shape, trainable=False) for shape in shapes]
        self.built = True


def test_a_layer_is_no_optimizer_whatever_its_name_or_its_variables(tmp_path):
    dense = keras.layers.Dense(3, name="adam")
    dense.build((None, 4))
    model = pair(
        d_optimizer=dense,
        # The name of an optimizer, and variables that fit no weight of the model.
        adam=Counting([(4, 2), (9, 9)], name="sgd"),
        # The variables of an optimizer, and no name of one.
        a_shadow=Counting([(3, 4), (4,)], name="shadow"),
    )
    others = kept(model, tmp_path / "pair.weights.h5") - plain()
    counts = Counter(name.split("/")[0] for name in others)
    assert counts == {"d_optimizer": 2, "adam": 4, "a_shadow": 4}


def test_a_layer_called_optimizer_is_kept(tmp_path):
    dense = keras.layers.Dense(2)
    dense.build((None, 4))
    assert len(kept(pair(optimizer=dense), tmp_path / "a.weights.h5") - plain()) == 2


def test_the_optimizer_of_an_archive_is_found(tmp_path):
    model = pair()
    model.compile(OPTIMIZERS.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "b.keras"
    model.save(path)
    with open_reader(path) as reader:
        assert {*reader.structure.model_tensors} == plain()
        assert "optimizer/vars/5" in reader.structure.optimizer


def test_no_number_of_an_optimizer_is_averaged(tmp_path):
    model = pair()
    model.d_optimizer = OPTIMIZERS.Adam()
    model.d_optimizer.build(model.discriminator.trainable_variables)
    paths = []
    for epoch in (1, 2):
        model.d_optimizer.iterations.assign(epoch)
        for weight in model.weights:
            weight.assign(np.full(weight.shape, epoch))
        paths.append(tmp_path / f"{epoch}.weights.h5")
        model.save_weights(paths[-1])
    output = tmp_path / "mean.weights.h5"
    result = merge(paths, output)
    with open_reader(output) as reader:
        assert {*reader.structure.tensors} == plain()
        assert not any("optimizer" in group for group in reader.structure.groups)
    dropped = [item.tensor.name for item in result.plan.items if item.action == DROP]
    assert len(dropped) == 2 + 2 * 2
    model.d_optimizer = None
    model.load_weights(output)
    assert all(np.all(weight == 1.5) for weight in model.get_weights())
