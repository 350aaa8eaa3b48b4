"""The files that an audit writes beside the shards. They are named here because other commands read them."""

from pathlib import Path

RECORD_NAME = "audit.json"
CLUSTERS_MAGIC = b"jaxgpt-clusters"


def clusters_path(record: Path) -> Path:
    """The file of near-duplicate clusters that belongs to the record `record`: `audit-clusters.bin` by default."""
    return record.with_name(f"{record.stem}-clusters.bin")


def is_clusters_file(path: Path) -> bool:
    """Whether `path` is an audit's file of clusters rather than a token shard."""
    if not path.name.endswith("-clusters.bin") or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(CLUSTERS_MAGIC)) == CLUSTERS_MAGIC
