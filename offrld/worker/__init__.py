"""The worker process: claim one job, run it, report on it, end. Only the worker writes into a job's run folder."""
