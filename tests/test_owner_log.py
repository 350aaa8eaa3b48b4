"""The log that the project began with: six validation points of the reference run, as nanoGPT prints and as a table."""
