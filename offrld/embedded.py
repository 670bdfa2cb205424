"""The public path of `offrld.demo.embedded`."""

from offrld.demo.embedded import embedded_daemon

__all__ = ["embedded_daemon"]
