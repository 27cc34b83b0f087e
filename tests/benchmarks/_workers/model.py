"""The model whose checkpoints are averaged."""


def build(units, layers, blocks=1, inputs=None):
    """A Sequential of Dense and BatchNormalization pairs.

    Args:
        units: of each Dense.
        layers: pairs in a block.
        blocks: nested Sequentials; one is not nested. A flat model of 1,000 layers would exceed
            Python's limit of recursion when it is saved.
        inputs: features of the model's input; as many as `units` if left out.
    """
    import keras

    def pairs():
        for _ in range(layers):
            yield keras.layers.Dense(units)
            yield keras.layers.BatchNormalization()

    start = keras.Input((inputs or units,))
    if blocks == 1:
        return keras.Sequential([start, *pairs()])
    nested = [keras.Sequential([keras.Input((units,)), *pairs()]) for _ in range(blocks)]
    return keras.Sequential([start, *nested])
