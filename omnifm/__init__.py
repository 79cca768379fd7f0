"""OmniFM: federated learning for medical images whose sites differ in modality and task (arXiv 2603.21660)."""

__version__ = "0.1.0"
