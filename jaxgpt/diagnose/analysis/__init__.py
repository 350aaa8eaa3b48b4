"""What the checks know about one run: `RunAnalysis`, and the quantities that several checks share."""

from jaxgpt.diagnose.analysis.run import RunAnalysis

__all__ = ["RunAnalysis"]
