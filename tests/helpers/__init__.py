"""Data, runs and logs that several test modules use."""
