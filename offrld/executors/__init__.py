"""Ways to run a worker: each executor starts one attempt of a job and returns a handle to it."""
