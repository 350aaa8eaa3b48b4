"""Models in other programs' formats: Hugging Face folders of GPT-2 and Qwen3, GGUF, nanoGPT's checkpoints. No JAX."""
