"""Texts with duplicates, the audit's result by comparing every pair, and the command in this or another process."""

import collections
import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt.audit import main
from jaxgpt.data.dataset import Split
from jaxgpt.errors import JaxgptError

EOT = 50256
WORDS = ["sea", "ship", "wind", "captain", "harbor", "night", "letter", "house", "garden", "king", "stone", "river"]


def sentence(random_: random.Random, words: int) -> str:
    return " ".join(random_.choice(WORDS) + str(random_.randrange(50)) for _ in range(words))


def edited(random_: random.Random, text: str, share: float) -> str:
    """`text` with that share of its words replaced."""
    words = text.split(" ")
    for position in random_.sample(range(len(words)), round(share * len(words))):
        words[position] = random_.choice(WORDS) + str(50 + random_.randrange(50))
    return " ".join(words)


def texts_with_duplicates(seed: int = 0, count: int = 120) -> list[str]:
    """Documents, exact copies of some and edits of others."""
    random_ = random.Random(seed)
    own = [sentence(random_, random_.randrange(20, 200)) for _ in range(count)]
    copies = [random_.choice(own) for _ in range(count // 6)]
    edits = [edited(random_, random_.choice(own), 0.01) for _ in range(count // 6)]
    other = [edited(random_, random_.choice(own), 0.2) for _ in range(count // 6)]
    return [*own, *copies, *edits, *other, "short", "short", "a b"]


def documents(split: Split | None) -> list[tuple[int, ...]]:
    """The documents of a split that ends with an end-of-text token."""
    if split is None:
        return []
    ids = split.ids(0, split.tokens)
    return [tuple(part[part != EOT].tolist()) for part in np.split(ids, np.flatnonzero(ids == EOT) + 1)[:-1]]


def shingles(document: tuple[int, ...]) -> set[tuple[int, ...]]:
    return {document[n : n + 5] for n in range(len(document) - 4)} or {document}


def cluster_roots(all_documents: list[tuple[int, ...]]) -> list[int]:
    """The first document of each one's cluster, by comparing all pairs."""
    sets, root = [shingles(document) for document in all_documents], list(range(len(all_documents)))
    for a, b in itertools.combinations(range(len(sets)), 2):
        if root[a] != root[b] and 5 * len(sets[a] & sets[b]) >= 4 * len(sets[a] | sets[b]):
            low, high = sorted((root[a], root[b]))
            root = [low if one == high else one for one in root]
    return root


def kept_documents(train_documents: list[tuple[int, ...]], val_documents: list[tuple[int, ...]]) -> list[int]:
    """The documents that remain: the first of validation in each cluster, or else the first."""
    clusters = collections.defaultdict(list)
    for document, root in enumerate(cluster_roots([*train_documents, *val_documents])):
        clusters[root].append(document)
    return sorted(next((d for d in one if d >= len(train_documents)), one[0]) for one in clusters.values())


def refused(code: str, *arguments: Any) -> JaxgptError:
    with pytest.raises(JaxgptError) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == code, caught.value
    return caught.value


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run_with_file_limit(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process whose files cannot grow beyond `size` bytes: writing more fails, as on a full disk."""
    limited = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
from jaxgpt import errors
from jaxgpt.audit import main
sys.exit(errors.run(main))
"""
    command = [sys.executable, "-c", limited, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
