"""GSKR (global spectral knowledge retrieval): the server's bank of spectral prototypes, and retrieval from it.

Paper: arXiv 2603.21660, sec. 3.3, eq. (7) and (8).  A site sends centroids (`clustering`).  The server stores them
(`bank`, `entries`) and sends each site a shortlist.  The site retrieves prototypes from its shortlist (`retrieval`).
`diversity` tells whether the bank still holds different vectors.  Everything runs in float32 or float64 and is
deterministic; the server's part runs on the CPU.
"""

from omnifm.parts.knowledge.bank import KnowledgeBank
from omnifm.parts.knowledge.clustering import distinct, spherical_kmeans
from omnifm.parts.knowledge.retrieval import retrieve

__all__ = ["KnowledgeBank", "distinct", "retrieve", "spherical_kmeans"]
