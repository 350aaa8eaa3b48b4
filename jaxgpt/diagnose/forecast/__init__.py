"""Forecasts of the validation loss: of the run as it is, and of the same run with another schedule."""
