"""Builders of residual networks, from stock Keras layers."""
