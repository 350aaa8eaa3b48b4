"""From documents to shards: the parts of `jaxgpt.prepare`."""
