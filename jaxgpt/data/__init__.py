"""Token datasets: shards, manifest, tokenizer. Loads no JAX."""
