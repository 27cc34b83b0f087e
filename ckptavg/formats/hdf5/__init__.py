"""The HDF5 files of Keras 3 and Keras 2."""
