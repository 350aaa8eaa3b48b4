"""The network: `gpt` holds the architecture, `ops` the functions with custom gradients, `loss` the cross-entropy."""
