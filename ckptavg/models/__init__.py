"""A live Keras model, and data for it."""
