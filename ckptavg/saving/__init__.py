"""What saves checkpoints during training, whichever Keras trains: options, copies, files, locks."""
