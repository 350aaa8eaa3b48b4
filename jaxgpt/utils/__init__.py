"""What several packages use and no other library offers. Loads no JAX."""
