"""The network, its attention, its loss, and the operations with custom gradients."""
