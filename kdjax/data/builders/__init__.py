"""TFDS builders of real data sets that arrive with pip packages; no TensorFlow, no download."""
