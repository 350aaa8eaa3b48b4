"""Text from a trained model. Loads JAX."""
