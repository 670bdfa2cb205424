"""Ways to run a worker: each executor starts one attempt of a job and hands back a handle on it."""
