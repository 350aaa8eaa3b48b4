"""Forecasts the validation loss of a run as it is, and of the same run with another schedule."""
