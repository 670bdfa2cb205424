"""The worker process: claims one job, runs it, reports on it, and ends. Only the worker writes a job's run folder."""
