"""The batcher: many callers' rows → one call → each caller's rows.

tickets     callers' rows, cut into pieces and put together again
room        the waiting room: whose turn it is, and what a call is made of
"""

from service.batcher.room import Batcher, BatchReport
from service.batcher.tickets import Answer, Ticket, Work

__all__ = ["Answer", "BatchReport", "Batcher", "Ticket", "Work"]
