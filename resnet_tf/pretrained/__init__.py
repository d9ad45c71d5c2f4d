"""Weights from elsewhere: PyTorch checkpoints read without PyTorch, published files, Keras files."""
