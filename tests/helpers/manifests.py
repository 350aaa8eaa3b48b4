"""Folders of tokens as far as the planner reads them: a manifest without shards."""

import json
from pathlib import Path


def write_manifest(folder: Path, tokens: int, vocabulary: int = 50257) -> None:
    """Writes a manifest of a training split of that many tokens; GPT-2's vocabulary has 50,257."""
    shard = {"name": "train_000000.bin", "tokens": tokens, "xxh3_128": "0" * 32}
    split = {"documents": 1, "tokens": tokens, "bytes": 4 * tokens, "max_token": 9, "shards": [shard]}
    name = "gpt2" if vocabulary == 50257 else "char"
    entry = {"name": name, "fingerprint": "0" * 64, "file": "tokenizer.json", "vocab_size": vocabulary}
    entry["eot"] = vocabulary - 1
    settings = {"train_tokenizer": 0, "val_tokens": 0, "text_column": None, "shard_tokens": 100}
    values = {"format": 1, "tool": "t", "tokenizer": entry, "eot_position": "appended", "dtype": "uint16"}
    values |= {"splits": {"train": split}, "settings": settings, "sources": []}
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(values))
