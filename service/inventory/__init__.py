"""The inventory: artifacts on disk as a person looks after them: listed, verified, compared and pruned. Knows no HTTP.

holdings     what lies in a folder, and what the service would say of it
comparison   what differs between two versions
pruning      old versions removed, and which ones never are
command      `python -m service artifacts …`
"""

from service.inventory.command import add, run

__all__ = ["add", "run"]
