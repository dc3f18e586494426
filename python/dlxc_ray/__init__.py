"""dlxc on Ray: replicas of a server with Ray Serve (`serve.py`), answers to a data set with Ray Data (`data.py`).

Both run the program `dlxc serve`, one process each, and speak HTTP to it: no model is in Python's memory.
"""

from .data import Answers
from .process import Process
from .serve import application, build

__all__ = ["Answers", "Process", "application", "build"]
