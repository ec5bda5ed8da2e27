"""Make the environment of a peer: python -m benchmarks.peers [NAME ...]"""

from __future__ import annotations

import sys

from benchmarks.peers import PEERS

for name in sys.argv[1:] or PEERS:
    print(name, PEERS[name].versions(), flush=True)
