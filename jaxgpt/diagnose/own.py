"""A run of ours, diagnosed from its folder: by the train that makes it, and at its end."""

import dataclasses

from jaxgpt import logs
from jaxgpt.diagnose import diagnosis, proofs, setting
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.options import Options
from jaxgpt.runfolder import RunFolder


def of(folder: RunFolder) -> Diagnosis:
    """What `python -m jaxgpt.diagnose` says of it. Raises `DataError` where its log holds nothing that can be read."""
    history = logs.read(folder.log_file)
    found = diagnosis.diagnose(history, setting.of(history, Options()))
    return dataclasses.replace(found, proofs=proofs.of(folder))
