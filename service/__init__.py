"""Causeway: Bridge's webhooks, proven, kept in one order, and handed on.

Importing the package costs nothing and needs nothing: the service's dependencies (the extra
`causeway[server]`) are imported by the modules that use them.
"""

__version__ = "0.1.0"
