"""Workers: several processes that serve one port. Knows how they live and die, and nothing of requests."""

from service.workers.member import House, Member
from service.workers.plan import count, obstacle, share
from service.workers.stock import Source, Stock
from service.workers.supervisor import Supervisor

__all__ = ["House", "Member", "Source", "Stock", "Supervisor", "count", "obstacle", "share"]
