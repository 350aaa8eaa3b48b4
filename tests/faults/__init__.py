"""What breaks in the middle of a run or on its disk, and what must hold nevertheless (docs/reliability.md)."""
