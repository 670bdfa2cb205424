"""The control plane: a server that answers at once, a durable queue, and the supervision of worker processes. Nothing imports torch."""
